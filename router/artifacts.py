"""Stored images. An artifact belongs to the attempt that made it and is whole before the job's row names it.

`LocalArtifacts` keeps files; the protocol is what an object store will have to offer, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from router.errors import ArtifactError
from router.jobs import Image

SUFFIXES = {"image/png": ".png"}


class Artifacts(Protocol):
    async def put(self, generation_id: str, data: bytes, media_type: str) -> Image:
        """Store the bytes so that they survive a power cut. Again with the same is the same.

        Raises ArtifactError.
        """
        ...

    def open(self, image: Image) -> Path:
        """Where the bytes lie. Raises ArtifactError if they are not there."""
        ...

    async def keep_only(self, job_id: str, image: Image | None) -> None:
        """Remove what other attempts at the job have left; with None, all of it. Raises ArtifactError."""
        ...


@dataclass(frozen=True, slots=True)
class LocalArtifacts:
    """Files under `root`: `<fan>/<job>.<attempt>-<digest>.png`.

    The fan-out is the job id's last two characters, which are random (its first tell the time), so that
    no folder grows beyond a thousandth of all images. The name has the attempt in it, so a late attempt
    never touches another's file, and the digest, so a file never changes.
    """

    root: Path

    async def put(self, generation_id: str, data: bytes, media_type: str) -> Image:
        digest = await asyncio.to_thread(_digest, data)
        job_id = generation_id.partition(".")[0]
        name = f"{generation_id}-{digest[:16]}{SUFFIXES.get(media_type, '.bin')}"
        relative = Path(_fan(job_id), name)
        try:
            await asyncio.to_thread(_write, self.root / relative, data)
        except OSError as error:
            raise ArtifactError(
                f"the image of {generation_id} could not be stored under {self.root}: {error.strerror}"
            ) from error
        return Image(path=str(relative), sha256=digest, bytes=len(data), media_type=media_type)

    def open(self, image: Image) -> Path:
        path = self.root / image.path
        if not path.is_file():
            raise ArtifactError(f"the image {image.path} is no longer in {self.root}; was it removed by hand?")
        return path

    async def keep_only(self, job_id: str, image: Image | None) -> None:
        kept = None if image is None else self.root / image.path
        try:
            await asyncio.to_thread(_remove_others, self.root / _fan(job_id), job_id, kept)
        except OSError as error:
            raise ArtifactError(
                f"what lost attempts at {job_id} left under {self.root} could not be removed: {error.strerror}"
            ) from error


def _fan(job_id: str) -> str:
    return job_id[-2:]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Temporary file, fsync, rename, fsync of the folder: at every moment the name means all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        # Readable by the group: the edge may serve files itself one day. The folder above is the guard.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_others(folder: Path, job_id: str, kept: Path | None) -> None:
    for path in (*folder.glob(f"{job_id}.*"), *folder.glob(f".{job_id}.*")):
        if path != kept:
            path.unlink(missing_ok=True)
