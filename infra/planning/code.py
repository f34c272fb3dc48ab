"""A digest of the source of a program: what tells an upgraded one from the one that is running.

A unit runs as long as its description stays the same. Without this, `git pull && make deploy` would say
that nothing has changed while yesterday's code goes on serving.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def code_fingerprint(root: Path, *parts: str) -> str:
    """16 hex digits that change with any of these files, and any Python file of these packages, under `root`."""
    digest = hashlib.sha256()
    for part in parts:
        found = root / part
        for file in sorted(found.rglob("*.py")) if found.is_dir() else [found]:
            digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
