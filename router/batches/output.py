"""The files that a batch's answers are written to, and the room that they take."""

from __future__ import annotations

from dataclasses import replace

import structlog

from router.artifacts import Draft, file_path
from router.batches import PURPOSE_OUTPUT, Batch, BatchLease, DoneLine, StoredFile
from router.batches.desk import IMAGE_LOST, Desk, final, line_made, no_room
from router.errors import ArtifactError, OutputTooLargeError

log = structlog.get_logger(__name__)

STEP = 64 * 2**20
"""What is wanted beyond the promise is promised so many bytes at once, where there is room: each is a synced write."""


class Answers:
    """Both files of a batch: what was made, and why the rest was not.

    They keep to what the batch was promised of its key's files, of which each line has what was `foreseen` for it. That
    was an estimate: a line whose images are larger gets what smaller ones have left, or is promised the difference when
    it is written, or is an error where there is no room for it. What is foreseen for those behind it stays theirs.
    """

    def __init__(self, desk: Desk, lease: BatchLease, batch: Batch, foreseen: int) -> None:
        self._desk, self._lease, self._batch = desk, lease, batch
        self._output, self._errors = Output(desk, batch, "output"), Output(desk, batch, "error")
        self._promised, self._left = batch.promised, foreseen

    async def write(self, line: DoneLine) -> bool:
        """The line's answer, into its file; whether its images are in it."""
        self._left -= line.foreseen
        if line_made(line) and not await self._has_room(self._desk.words.size(line)):
            log.error("batch_output_full", batch=self._batch.id, line=line.line)
            line = replace(line, refusal=no_room(line))
        pieces = self._desk.words.render(self._batch, line)
        try:
            first = await anext(pieces)
        except ArtifactError as error:
            if not final(self._batch, error, self._desk.now_ms()):
                raise
            log.error("batch_image_lost", batch=self._batch.id, line=line.line, error=str(error))  # noqa: TRY400 - its trace says nothing
            line = replace(line, refusal=IMAGE_LOST)
            pieces = self._desk.words.render(self._batch, line)
            first = await anext(pieces)
        made = line_made(line)
        file = self._output if made else self._errors
        await file.write(first)
        async for piece in pieces:
            await file.write(piece)
        return made

    async def kept(self) -> tuple[StoredFile | None, StoredFile | None]:
        return await self._output.kept(), await self._errors.kept()

    async def drop(self) -> None:
        await self._output.drop()
        await self._errors.drop()

    async def _has_room(self, more: int) -> bool:
        wanted = self._output.bytes + self._errors.bytes + more + self._left
        return wanted <= self._promised or await self._promise(wanted + STEP) or await self._promise(wanted)

    async def _promise(self, wanted: int) -> bool:
        try:
            await self._desk.batches.promise(self._lease, wanted, self._desk.quota)
        except OutputTooLargeError:
            return False
        self._promised = wanted
        return True


class Output:
    """A file that is begun with its first line: a batch without errors has no error file."""

    def __init__(self, desk: Desk, batch: Batch, what: str) -> None:
        self._desk, self._batch, self._what = desk, batch, what
        self._id = desk.file_id()
        self._draft: Draft | None = None
        self.bytes = 0
        """Written so far."""

    async def write(self, piece: bytes) -> None:
        if self._draft is None:
            self._draft = await self._desk.artifacts.draft(file_path(self._id))
        await self._draft.write(piece)
        self.bytes += len(piece)

    async def kept(self) -> StoredFile | None:
        if self._draft is None:
            return None
        await self._draft.keep()
        name = f"{self._batch.id}_{self._what}.jsonl"
        expires = self._desk.now_ms() + self._batch.output_ms
        return StoredFile(
            self._id, self._batch.api_key_id, PURPOSE_OUTPUT, name, self.bytes, file_path(self._id), 0, expires
        )

    async def drop(self) -> None:
        if self._draft is not None:
            await self._draft.drop()
