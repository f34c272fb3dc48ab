"""Artifacts as files of one folder, for one router host. The edge serves them itself where it may read them."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

from router.artifacts import MARK, NAMED, InFile, fan, first_of, path_of
from router.errors import ArtifactError, ArtifactGoneError
from router.jobs import Image

LISTED = 500
"""Images whose names are asked after together."""
FAN_CHARS = 2
GONE = (errno.ENOENT, errno.ENOTDIR, errno.EIO)
"""What a read ends with where the file is no longer, or the disk has lost it; all else may pass."""
PIECE = 2**20
"""Bytes of a file that go to the disk, or come from there, at once."""
FOLDER_MODE = 0o750
FILE_MODE = 0o640
"""Readable by the group, which is the edge's where infra has made the folder so (set-group-ID); whatever the
umask says. The folders above are the guard."""


@dataclass(frozen=True, slots=True)
class LocalArtifacts:
    """Files under `root`."""

    root: Path

    async def put(self, generation_id: str, data: bytes, media_type: str, sha256: str | None = None) -> Image:
        def store() -> Image:
            digest = sha256 or hashlib.sha256(data).hexdigest()
            relative = path_of(generation_id, digest, media_type)
            _write(self.root / relative, data)
            return Image(path=relative, sha256=digest, bytes=len(data), media_type=media_type)

        try:
            return await asyncio.to_thread(store)
        except OSError as error:
            raise ArtifactError(
                f"the image of {generation_id} could not be stored under {self.root}: {error.strerror}"
            ) from error

    async def read(self, image: Image) -> bytes:
        def stored() -> tuple[bytes, str]:
            data = (self.root / image.path).read_bytes()
            return data, hashlib.sha256(data).hexdigest()

        try:
            data, digest = await asyncio.to_thread(stored)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise self._missing(image) from error
            raise _unreadable(f"the image {image.path} in {self.root}", error) from error
        if digest != image.sha256:
            raise ArtifactGoneError(
                f"the image {image.path} in {self.root} is not the one that was stored; check the disk"
            )
        return data

    async def draft(self, path: str) -> LocalDraft:
        try:
            return await asyncio.to_thread(LocalDraft, self.root / path)
        except OSError as error:
            raise ArtifactError(f"no file can be stored under {self.root}: {error.strerror}") from error

    async def stream(self, path: str, begin: int = 0) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(_open_at, self.root / path, begin)
            try:
                while data := await asyncio.to_thread(file.read, PIECE):
                    yield data
            finally:
                file.close()
        except OSError as error:
            raise _unreadable(f"the file {path} in {self.root}", error) from error

    async def place(self, image: Image, lifetime_s: int) -> InFile:  # noqa: ARG002 - a file's place does not expire
        path = self.root / image.path
        if not await asyncio.to_thread(path.is_file):
            raise self._missing(image)
        return InFile(path, image.path)

    async def keep_only(self, job_id: str, image: Image | None) -> None:
        if image is not None and first_of(job_id, image):
            return
        kept = None if image is None else self.root / image.path
        try:
            await asyncio.to_thread(_remove_others, self.root / fan(job_id), job_id, kept)
        except OSError as error:
            raise ArtifactError(
                f"what lost attempts at {job_id} left under {self.root} could not be removed: {error.strerror}"
            ) from error

    async def older_than(self, age_s: float) -> AsyncIterator[Sequence[str]]:
        before = time.time() - age_s
        try:
            for folder in await asyncio.to_thread(_fans, self.root):
                found = await asyncio.to_thread(_stored_before, self.root, folder, before)
                for i in range(0, len(found), LISTED):
                    yield found[i : i + LISTED]
        except OSError as error:
            raise ArtifactError(f"the images under {self.root} could not be listed: {error.strerror}") from error

    async def remove(self, paths: Sequence[str]) -> None:
        try:
            await asyncio.to_thread(_remove, [self.root / path for path in paths])
        except OSError as error:
            raise ArtifactError(f"an image under {self.root} could not be removed: {error.strerror}") from error

    async def mark(self) -> str | None:
        try:
            return await asyncio.to_thread(_read_mark, self.root / MARK)
        except OSError as error:
            raise self._unusable(error) from error

    async def set_mark(self, mark: str) -> str:
        try:
            return await asyncio.to_thread(_set_mark, self.root / MARK, mark)
        except OSError as error:
            raise self._unusable(error) from error

    async def check(self) -> None:
        try:
            await asyncio.to_thread(_write_and_remove, self.root / f".probe.{os.getpid()}")
        except OSError as error:
            raise self._unusable(error) from error

    def _missing(self, image: Image) -> ArtifactError:
        return ArtifactGoneError(f"the image {image.path} is no longer in {self.root}; was it removed by hand?")

    def _unusable(self, error: OSError) -> ArtifactError:
        return ArtifactError(f"no image can be stored under {self.root}: {error.strerror}")


def _unreadable(what: str, error: OSError) -> ArtifactError:
    kind = ArtifactGoneError if error.errno in GONE else ArtifactError
    return kind(f"{what} cannot be read: {error.strerror}")


class LocalDraft:
    """Beside its place, under a name that begins with a dot. What is written is gathered, and goes to the disk in
    threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        _make(path.parent)
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        descriptor = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._gathered = bytearray()

    async def write(self, data: bytes) -> None:
        self._gathered += data
        if len(self._gathered) >= PIECE:
            await self._flush()

    async def keep(self) -> None:
        await self._flush()
        try:
            await asyncio.to_thread(self._keep)
        except OSError as error:
            raise self._failed(error) from error

    async def drop(self) -> None:
        await asyncio.to_thread(self._drop)

    async def _flush(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        try:
            await asyncio.to_thread(_write_all, self._file, gathered)
        except OSError as error:
            raise self._failed(error) from error

    def _keep(self) -> None:
        os.fchmod(self._file.fileno(), FILE_MODE)
        os.fsync(self._file.fileno())
        self._file.close()
        self._draft.replace(self._path)
        _sync(self._path.parent)

    def _drop(self) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> ArtifactError:
        return ArtifactError(f"the file {self._path.name} could not be stored: {error.strerror}")


def _write_all(file: RawIOBase, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def _open_at(path: Path, begin: int) -> BinaryIO:
    file = path.open("rb")
    file.seek(begin)
    return file


def _write(path: Path, data: bytes) -> None:
    """Temporary file, fsync, rename, fsync of the folder: at every moment the name means all of it or nothing."""
    _make(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, FILE_MODE)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def _make(folder: Path) -> None:
    """The folder, and those above it that are missing; a set-group-ID bit from above stays."""
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        return  # another image of the same fan was quicker
    folder.chmod(folder.stat().st_mode & 0o2000 | FOLDER_MODE)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_others(folder: Path, job_id: str, kept: Path | None) -> None:
    for path in (*folder.glob(f"{job_id}.*"), *folder.glob(f".{job_id}.*")):
        if path != kept:
            path.unlink(missing_ok=True)


def _fans(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if len(path.name) == FAN_CHARS and path.is_dir())


def _stored_before(root: Path, folder: Path, before: float) -> list[str]:
    return [
        str(path.relative_to(root))
        for path in folder.iterdir()
        if path.name.lstrip(".").startswith(NAMED) and path.stat().st_mtime < before
    ]


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _read_mark(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def _set_mark(path: Path, mark: str) -> str:
    """By a link, which fails if the name is taken: nobody ever reads half a mark."""
    _make(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        draft.write_text(mark + "\n")
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)
    return path.read_text().strip()


def _write_and_remove(path: Path) -> None:
    _make(path.parent)
    try:
        path.write_bytes(b"whether an image could be stored here\n")
    finally:
        path.unlink(missing_ok=True)
