"""Who said yes to which repository's licence on this machine, written down: a gated download asks for it.

One small JSON file a repository, in the worker's cache folder, beside what was downloaded under it.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from worker.engine import LoadError

FOLDER = "licences"


class Way(StrEnum):
    """How the yes was given."""

    COMMAND = "--accept-license"
    SETTING = "accept_license"


class Acceptance(BaseModel):
    """A yes. `licence` is empty where the hub could not be asked for its name yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: str
    licence: str
    way: Way
    user: str
    at: AwareDatetime


def accepted(cache: Path, repository: str) -> Acceptance | None:
    """The yes that was given for `repository`, if one was. Raises LoadError."""
    try:
        with _explained(cache), suppress(FileNotFoundError):
            return Acceptance.model_validate_json(_file(cache, repository).read_text(encoding="utf-8"))
    except ValidationError:
        pass
    return None


def accept(cache: Path, repository: str, licence: str, way: Way, now: datetime | None = None) -> Acceptance:
    """Write a yes down; one that is written already stays as it is. Raises LoadError."""
    if said := accepted(cache, repository):
        return said
    given = Acceptance(repository=repository, licence=licence, way=way, user=_user(), at=now or datetime.now(UTC))
    target = _file(cache, repository)
    with _explained(cache):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = target.with_suffix(f".{os.getpid()}")
        draft.write_text(given.model_dump_json(indent=2) + "\n", encoding="utf-8")
        draft.replace(target)
    return given


@contextmanager
def _explained(cache: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(
            f"the yes to a licence cannot be kept in {cache / FOLDER} ({error}); let this user read and write that "
            "folder, or name another one as LETTERPRESS_WORKER_CACHE_DIR"
        ) from error


def _file(cache: Path, repository: str) -> Path:
    return cache / FOLDER / f"{repository.replace('/', '--')}.json"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())
