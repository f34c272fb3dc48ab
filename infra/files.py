"""Files that are there whole or not at all, whoever else writes or dies meanwhile."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put `content` in the place of whatever is there; a reader sees the old or the new, on disk for good."""
    draft = _draft(path, content, mode)
    draft.replace(path)


def create_once(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put `content` there unless something is; of several at once the first one stays."""
    draft = _draft(path, content, mode)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _draft(path: Path, content: bytes, mode: int) -> Path:
    """A file beside `path`, written down. Nobody else may read it before it has its mode."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return draft
