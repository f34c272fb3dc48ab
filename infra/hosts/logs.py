"""The files that units write to: how they are kept short, and how their ends are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROTATE_AT_BYTES = 8 * 1024 * 1024
"""A log over this size is set aside when its unit next starts; one earlier one is kept."""

TAIL_BYTES = 64 * 1024
READ_BYTES = 1024 * 1024
"""At most this much of a log is read at once by someone who follows it."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a log has been read: which file it was, and how many bytes of it."""

    inode: int = 0
    offset: int = 0


def rotate(folder: Path, unit: str) -> None:
    """Set aside the unit's long logs: `unit.log`, and `unit.*.log` that it opens itself."""
    for log in folder.glob(f"{unit}.*log"):
        if log.stat().st_size > ROTATE_AT_BYTES:
            log.replace(log.with_name(log.name + ".1"))


def last_lines(log: Path, lines: int) -> str:
    """At most `lines` lines, and 64 KiB, from the log's end; empty if there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            content = file.read()
    except FileNotFoundError:
        return ""
    return "\n".join(content.decode(errors="replace").splitlines()[-lines:]) if lines > 0 else ""


def end(log: Path) -> Position:
    """Where the log ends now; what comes after it is new."""
    try:
        found = log.stat()
    except FileNotFoundError:
        return Position()
    return Position(found.st_ino, found.st_size)


def whole_lines_since(log: Path, seen: Position) -> tuple[str, Position]:
    """What was written since, up to the last line end, and how far that goes. A log that was set aside begins anew."""
    try:
        with log.open("rb") as file:
            found = os.fstat(file.fileno())
            start = seen.offset if found.st_ino == seen.inode and found.st_size >= seen.offset else 0
            file.seek(start)
            content = file.read(READ_BYTES)
    except FileNotFoundError:
        return "", Position()
    cut = len(content) if len(content) == READ_BYTES else content.rfind(b"\n") + 1
    return content[:cut].decode(errors="replace"), Position(found.st_ino, start + cut)
