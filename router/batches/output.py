"""The files that a batch's answers are written to."""

from __future__ import annotations

from router.artifacts import Draft, file_path
from router.batches import PURPOSE_OUTPUT, Batch, StoredFile
from router.batches.desk import Desk


class Output:
    """A file that is begun with its first line: a batch without errors has no error file."""

    def __init__(self, desk: Desk, batch: Batch, what: str) -> None:
        self._desk, self._batch, self._what = desk, batch, what
        self._id = desk.file_id()
        self._draft: Draft | None = None
        self._bytes = 0

    async def write(self, piece: bytes) -> None:
        if self._draft is None:
            self._draft = await self._desk.artifacts.draft(file_path(self._id))
        await self._draft.write(piece)
        self._bytes += len(piece)

    async def kept(self) -> StoredFile | None:
        if self._draft is None:
            return None
        await self._draft.keep()
        name = f"{self._batch.id}_{self._what}.jsonl"
        expires = self._desk.now_ms() + self._batch.output_ms
        return StoredFile(
            self._id, self._batch.api_key_id, PURPOSE_OUTPUT, name, self._bytes, file_path(self._id), 0, expires
        )

    async def drop(self) -> None:
        if self._draft is not None:
            await self._draft.drop()
