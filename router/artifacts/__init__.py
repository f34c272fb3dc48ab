"""Stored images. An artifact belongs to the attempt that made it and is whole before the job's row names it.

`Artifacts` is the seam; `router.artifacts.local` keeps files in a folder, `router.artifacts.s3` objects in a
bucket. Both name them alike, so a folder may be copied to a bucket and back.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from router.jobs import Image

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
MARK = "letterpress-artifacts"
"""The name under which each artifact store keeps its mark."""


@dataclass(frozen=True, slots=True)
class InFile:
    """The bytes lie in this file of this host. `relative` is its path under the artifacts' root."""

    path: Path
    relative: str


@dataclass(frozen=True, slots=True)
class AtUrl:
    """The bytes are to be had here, by GET, for a while. The URL is the permission: it is never logged."""

    url: str = field(repr=False)


class Draft(Protocol):
    """A file that is being written; nobody finds it before it is kept. The first of `keep` and `drop` ends it."""

    async def write(self, data: bytes) -> None: ...

    async def keep(self) -> None:
        """Whole, under its path, so that it survives a power cut."""
        ...

    async def drop(self) -> None:
        """Nothing of it is left. Once it is kept this changes nothing: the store may name it already, though its word
        was lost on the way; what nobody names is collected."""
        ...


class Artifacts(Protocol):
    """Every method may raise ArtifactError; then nothing was promised, and trying again is safe. Of what was stored and
    is no longer, `read` and `stream` raise ArtifactGoneError: trying again is of no use."""

    async def put(self, generation_id: str, data: bytes, media_type: str, sha256: str | None = None) -> Image:
        """Store the bytes so that they survive a power cut. Again with the same is the same.

        `sha256` is theirs in hex, if the caller has seen to it already.
        """
        ...

    async def read(self, image: Image) -> bytes:
        """The bytes that were put, digest checked."""
        ...

    async def draft(self, path: str) -> Draft:
        """Begin a file; its path (`file_path`) must be new."""
        ...

    def stream(self, path: str, begin: int = 0) -> AsyncIterator[bytes]:
        """A file's bytes from `begin` on, some at a time."""
        ...

    async def place(self, image: Image, lifetime_s: int) -> InFile | AtUrl:
        """Where a client can be sent for the bytes, for `lifetime_s` seconds at the least."""
        ...

    async def keep_only(self, job_id: str, image: Image | None) -> None:
        """Remove what other attempts at the job have left; with None, all of it."""
        ...

    def older_than(self, age_s: float) -> AsyncIterator[Sequence[str]]:
        """The paths of all that was stored so long ago, some at a time; drafts of writes cut short are among them."""
        ...

    async def remove(self, paths: Sequence[str]) -> None:
        """Gone is success."""
        ...

    async def mark(self) -> str | None:
        """The text that this artifact store was marked with; None if it never was."""
        ...

    async def set_mark(self, mark: str) -> str:
        """Mark the store, unless somebody has: the mark that stands in the end."""
        ...

    async def check(self) -> None:
        """Write something small, and remove it: raises ArtifactError while an image could not be stored."""
        ...


def path_of(generation_id: str, digest: str, media_type: str) -> str:
    """An artifact's path under its store's root: `<fan>/<job>.<attempt>-<digest>.png`.

    The name has the attempt in it, so a late attempt never touches another's image, and the digest, so what
    a name means never changes.
    """
    job_id = generation_id.partition(".")[0]
    return f"{fan(job_id)}/{generation_id}-{digest[:16]}{SUFFIXES.get(media_type, '.bin')}"


def file_path(file_id: str) -> str:
    """Where a file that is no image lies."""
    return f"{fan(file_id)}/{file_id}.jsonl"


NAMED = ("job_", "file_")
"""How the names of all that is stored begin."""


def fan(job_id: str) -> str:
    """The folder of a job: its id's last two characters, which are random (its first tell the time), so that
    no folder grows beyond a thousandth of all images."""
    return job_id[-2:]


def first_of(job_id: str, image: Image) -> bool:
    """Whether the image is of the job's first attempt: then no other attempt can have left anything."""
    return image.path.startswith(f"{fan(job_id)}/{job_id}.1-")


async def digest_of(data: bytes) -> str:
    """SHA-256 in hex, off the event loop: an image has megabytes."""
    return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
