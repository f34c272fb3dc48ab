"""The files that units write to: how they are kept short, and how their ends are read."""

from __future__ import annotations

import os
from pathlib import Path

ROTATE_AT_BYTES = 8 * 1024 * 1024
"""A log over this size is set aside when its unit next starts; one earlier one is kept."""

TAIL_BYTES = 64 * 1024


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
