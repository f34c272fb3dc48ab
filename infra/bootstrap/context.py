"""What the worker's image is built from: this checkout's own files, and no others, as one archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

DOCKERFILE = "worker/Dockerfile"
PARTS = ("LICENSE", "README.md", "pyproject.toml", "constraints.txt", "infra", "router", "worker")
"""As .dockerignore has it."""


def context_files(root: Path) -> Iterator[Path]:
    for part in PARTS:
        found = root / part
        for file in sorted(found.rglob("*")) if found.is_dir() else [found]:
            relative = file.relative_to(root)
            hidden = any(name.startswith(".") or name == "__pycache__" for name in relative.parts)
            if file.is_file() and not hidden and file.suffix != ".pyc":
                yield relative


def context_fingerprint(root: Path) -> str:
    """16 hex digits that change with what an image is built from, but for what the worker does not run."""
    digest = hashlib.sha256()
    for relative in context_files(root):
        if relative.parts[0] not in ("README.md", "infra", "router"):
            digest.update(f"{relative}\n".encode() + (root / relative).read_bytes())
    return digest.hexdigest()[:16]


def build_context(root: Path) -> bytes:
    """A tar.gz for `docker build -`; the same bytes for the same files."""
    archive = io.BytesIO()
    with gzip.GzipFile(fileobj=archive, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for relative in context_files(root):
            entry = tar.gettarinfo(str(root / relative), str(relative))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = 0
            with (root / relative).open("rb") as file:
                tar.addfile(entry, file)
    return archive.getvalue()
