"""Repositories that lie on this machine, in the layout that every tool of the hub shares, and whether they are whole.

    models--OWNER--NAME/refs/main              the commit that a branch stood at
    models--OWNER--NAME/snapshots/COMMIT/…     links by file name ...
    models--OWNER--NAME/blobs/DIGEST           ... to contents, named by their digests

Whether a snapshot is whole can therefore be told without the hub: its indexes name the files that belong to
it, and each file's own name says what its bytes must hash to. Nothing here speaks to the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from huggingface_hub import constants

INDEX = "model_index.json"
RUNPOD = Path("/runpod-volume/huggingface-cache/hub")
"""Where RunPod lays the repositories that an endpoint names as its models, ahead of the worker's start."""
CHUNK = 2**22
SHARDS = ".safetensors.index.json"


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A snapshot: `missing` names the files that its own indexes ask for and that are not there."""

    repository: str
    commit: str
    folder: Path
    bytes: int
    missing: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.missing


def caches() -> tuple[Path, ...]:
    """The hub's cache of this user, and RunPod's where there is one; the first is where downloads go."""
    own = Path(constants.HF_HUB_CACHE)
    return (own, RUNPOD) if RUNPOD.is_dir() and own != RUNPOD else (own,)


def storage(cache: Path, repository: str) -> Path:
    """The folder of a repository within a cache."""
    return cache / f"models--{repository.replace('/', '--')}"


def find(repository: str) -> Found | None:
    """The snapshot of `repository` to use: a whole one rather than not, the newest branch's rather than another."""
    candidates = [found for cache in caches() for found in _snapshots(cache, repository)]
    return next((found for found in candidates if found.whole), candidates[0] if candidates else None)


def every() -> Iterator[Found]:
    """The snapshot to use of every repository that lies here, by name."""
    names = {
        folder.name.removeprefix("models--").replace("--", "/", 1)
        for cache in caches()
        for folder in cache.glob("models--*--*")
    }
    for name in sorted(names):
        if found := find(name):
            yield found


def _snapshots(cache: Path, repository: str) -> Iterator[Found]:
    folder = storage(cache, repository)
    snapshots = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    try:
        main = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    for snapshot in sorted(snapshots, key=lambda path: path.name != main):
        size = sum(path.stat().st_size for path in files(snapshot))
        yield Found(repository, snapshot.name, snapshot, size, tuple(missing(snapshot)))


def files(folder: Path) -> list[Path]:
    """Every file of a snapshot whose contents are there, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def missing(folder: Path) -> Iterator[str]:
    """What the folder's own indexes name and is not there; links whose contents are gone too."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.exists():
            yield str(path.relative_to(folder))
        elif path.name.endswith(SHARDS):
            yield from (str((path.parent / shard).relative_to(folder)) for shard in _shards(path))
    for component in _components(folder):
        if not any((folder / component).glob("*")):
            yield f"{component}/"
    if not any(folder.rglob("*.safetensors")):
        yield "*.safetensors"


def _shards(index: Path) -> list[str]:
    named = _json(index).get("weight_map")
    shards = {name for name in named.values() if isinstance(name, str)} if isinstance(named, dict) else set()
    return sorted(name for name in shards if not (index.parent / name).is_file())


def _components(folder: Path) -> list[str]:
    described = _json(folder / INDEX)
    return sorted(name for name, made_of in described.items() if isinstance(made_of, list) and all(made_of))


def _json(path: Path) -> dict[str, object]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def digest(path: Path) -> str | None:
    """What the bytes of a snapshot's file must hash to, by the name of its contents; None if that says nothing."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", name) else None


def hasher(expected: str, size: int) -> Hash:
    """Hashes as `expected` was hashed: SHA-256 of large files, git's own (SHA-1 over a header) of small ones."""
    if len(expected) == 64:
        return hashlib.sha256()
    made = hashlib.sha1(usedforsecurity=False)
    made.update(b"blob %d\0" % size)
    return made


def sound(path: Path, expected: str, on_bytes: Callable[[int], None] = lambda _: None) -> bool:
    """Whether the bytes of a file hash to what they should. Reads all of it: about a second a gigabyte."""
    hashed = hasher(expected, path.stat().st_size)
    with path.open("rb") as contents:
        while chunk := contents.read(CHUNK):
            hashed.update(chunk)
            on_bytes(len(chunk))
    return hashed.hexdigest() == expected


def damaged(folder: Path, on_bytes: Callable[[int], None]) -> Iterator[str]:
    """The files of a snapshot whose bytes are not what their digests say."""
    for path in files(folder):
        if (expected := digest(path)) and not sound(path, expected, on_bytes):
            yield os.fspath(path.relative_to(folder))
