"""The output folder of a batch: who holds it, and files in it that are there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from router.client.batch.errors import BatchError

LOCK = ".lock"
DRAFT = ".part"
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""An id that is a file's name on every system, as it is."""
CHUNK = 1 << 20


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone. BatchError says who else has it.

    The lock goes with its process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BatchError(f"{folder} is in use by {_holder(file.read())}; one batch at a time") from None
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        for left in folder.glob(f".*{DRAFT}"):
            left.unlink()
        yield


def _holder(said: str) -> str:
    try:
        holder = json.loads(said)
        return f"process {holder['process']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # it was just about to say so
        return "another process"


def save(folder: Path, name: str, content: bytes) -> None:
    """On the disk under its name when this returns, in place of what was there."""
    draft = folder / f".{name}{DRAFT}"
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / name)


def settle(folder: Path) -> None:
    """The names in it are on the disk, too, when this returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sound(path: Path, size: int, digest: bytes | None) -> bool:
    """Whether the file is there with this size and, if one is given, this SHA-256."""
    try:
        if path.stat().st_size != size:
            return False
        if digest is None:
            return True
        found = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
    except FileNotFoundError:
        return False
    return found.digest() == digest


def stem(number: int, own_id: str | None) -> str:
    """What a line's files are called, without their endings: its own id where that is a file's name."""
    return own_id if own_id is not None and SAFE_NAME.fullmatch(own_id) else f"{number:06d}"
