"""The index of a batch: one append-only file that says what has become of each line (docs/batch.md).

The first line describes the batch, every other one an entry; of a line of the input the last entry counts. An entry
is on the disk before it counts as written. What a killed process leaves of its last line is cut off: nobody was
promised it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError

from router.client.batch.errors import BatchError
from router.client.batch.lines import Defaults
from worker.contract import Frozen

NAME = "index.jsonl"
FORMAT = 1


class Head(Frozen):
    """The batch itself. `batch` is drawn once, and all names of its jobs follow from it."""

    letterpress_batch: int = FORMAT
    batch: str = Field(pattern=r"^[0-9a-f]{16}$")
    input: str
    defaults: Defaults
    begun_at: datetime
    software: str


class State(StrEnum):
    BEGUN = "begun"  # its job is known to the router; what has become of it is asked there
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INVALID = "invalid"  # nothing was asked of anybody
    DROPPED = "dropped"  # the line was edited, or is gone; what was begun of it has been cancelled


class Entry(Frozen):
    """What has become of line `line`, whose text had this digest. `number_of_try` counts from 1; 0 is none yet."""

    line: int = Field(ge=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    state: State
    id: str | None = None
    job: str | None = None
    number_of_try: int = Field(default=1, ge=0, alias="try")
    file: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    seed: int | None = None
    is_image_safe: bool | None = None
    gpu_s: float | None = None
    error: str | None = None
    at: datetime


@dataclass(frozen=True, slots=True)
class Known:
    """The part of an entry that is kept in memory, fifty thousand times."""

    digest: bytes
    state: State
    job: str | None
    number_of_try: int
    file: str | None
    sha256: bytes | None
    bytes: int
    gpu_s: float

    @classmethod
    def of(cls, entry: Entry) -> Self:
        return cls(
            bytes.fromhex(entry.digest),
            entry.state,
            entry.job,
            entry.number_of_try,
            entry.file,
            bytes.fromhex(entry.sha256) if entry.sha256 else None,
            entry.bytes or 0,
            entry.gpu_s or 0.0,
        )

    def is_of(self, digest: str) -> bool:
        return self.digest.hex() == digest


class Index:
    """An open index. One process at a time has it (`router.client.batch.folder`)."""

    def __init__(self, path: Path, head: Head, known: dict[int, Known], descriptor: int) -> None:
        self.path, self.head = path, head
        self._known, self._file = known, descriptor

    @classmethod
    def open(cls, folder: Path, new: Head) -> Self:
        """The folder's index; begun with `new` if there is none. Raises BatchError if it cannot be believed."""
        path = folder / NAME
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        head = _head(path, lines[0]) if lines else new
        known: dict[int, Known] = {}
        for number, line in enumerate(lines[1:], 2):
            entry = _entry(path, number, line)
            known[entry.line] = Known.of(entry)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        index = cls(path, head, known, descriptor)
        if whole < len(content):
            os.ftruncate(descriptor, whole)
        if not lines:
            index._write(head.model_dump_json().encode(), sync=True)
        return index

    def close(self) -> None:
        os.close(self._file)

    @property
    def known(self) -> Mapping[int, Known]:
        """By line."""
        return self._known

    def add(self, entry: Entry, *, sync: bool = True) -> None:
        """Returns when it is on the disk. `sync` false: when a killed process cannot lose it any more."""
        self._write(entry.model_dump_json(exclude_none=True, by_alias=True).encode(), sync=sync)
        self._known[entry.line] = Known.of(entry)

    def _write(self, line: bytes, *, sync: bool) -> None:
        before = os.fstat(self._file).st_size
        left = memoryview(line + b"\n")
        try:
            while left:
                left = left[os.write(self._file, left) :]
            if sync:
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, before)  # a part of a line in the middle would spoil all that follow
            raise


def _head(path: Path, line: bytes) -> Head:
    try:
        head = Head.model_validate_json(line)
    except ValidationError as error:
        raise BatchError(f"{path} is not the index of a batch; give another folder") from error
    if head.letterpress_batch != FORMAT:
        raise BatchError(f"{path} is an index of format {head.letterpress_batch}, which another release wrote")
    return head


def _entry(path: Path, number: int, line: bytes) -> Entry:
    try:
        return Entry.model_validate_json(line)
    except ValidationError as error:
        raise BatchError(
            f"{path}, line {number}: is damaged ({error.error_count()} errors). Remove that line, and what it told of "
            "is asked for again"
        ) from error
