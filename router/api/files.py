"""OpenAI's Files API, for what batches are made of: their input, and what came of it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import StreamingResponse

from router import ids
from router.api.auth import Caller
from router.api.context import Context, InContext
from router.api.errors import FORM as FORM_REFUSALS
from router.api.errors import NAMED, Dialect, documented
from router.api.explain import Fault, FaultCode
from router.api.lists import After, Listed, Page
from router.api.refusals import Kind, RefusedError, of_faults, refused
from router.api.uploads import FieldRead, FileBegan, FileData, Part, parts_of
from router.artifacts import Draft, file_path
from router.batches import PURPOSE_INPUT, StoredFile
from router.contract import MAX_BATCH_BYTES
from router.errors import ArtifactError, FilesFullError
from router.store import ApiKey
from worker.contract import Frozen

PATH = "/v1/files"
DAY_S = 86_400
KEPT_S = 30 * DAY_S
"""What OpenAI keeps a batch's input for, unless told otherwise."""
MIN_KEPT_S, MAX_KEPT_S = 3600, 30 * DAY_S
MAX_NAME = 255
MAX_LISTED = 10_000
LINKS: dict[str, Any] = {
    "batch": {
        "description": "Make a batch of it.",
        "operationRef": "#/paths/~1v1~1batches/post",
        "requestBody": {
            "input_file_id": "$response.body#/id",
            "endpoint": "/v1/images/generations",
            "completion_window": "24h",
        },
    }
}
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON Lines, at most 200 MiB."},
                        "purpose": {"type": "string", "enum": [PURPOSE_INPUT]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_KEPT_S,
                            "maximum": MAX_KEPT_S,
                        },
                    },
                }
            }
        },
    }
}

FileId = Annotated[str, Path(max_length=64)]
router = APIRouter(prefix=PATH, tags=["openai"])
OPENAI = partial(documented, Dialect.OPENAI)


class FileObject(Listed):
    """Times are seconds since the epoch."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(Page[FileObject]):
    pass


class FileDeleted(Frozen):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post(
    "",
    summary="Upload a batch's input",
    openapi_extra=FORM,
    responses={200: {"links": LINKS}, **OPENAI(*FORM_REFUSALS, Kind.FILES_FULL)},
)
async def upload(request: Request, context: InContext, key: Caller) -> FileObject:
    """Its bytes go to the artifact store as they come. What is in it is looked at when a batch is made of it."""
    file = await _received(request, context, key)
    structlog.contextvars.bind_contextvars(file=file.id, bytes=file.bytes)
    return described(file)


@router.get("", summary="Your files", responses=OPENAI(Kind.INVALID_REQUEST))
async def files(
    context: InContext,
    key: Caller,
    purpose: Annotated[str | None, Query(max_length=32)] = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    found = await context.core.store.batches.files(key.id, purpose, after, limit + 1, oldest_first=order == "asc")
    return FileList.of([described(file) for file in found], limit)


@router.get("/{file_id}", summary="One file", responses=OPENAI(*NAMED))
async def read(file_id: FileId, context: InContext, key: Caller) -> FileObject:
    return described(await _own(context, key, file_id))


@router.delete("/{file_id}", summary="Remove a file", responses=OPENAI(*NAMED))
async def remove(file_id: FileId, context: InContext, key: Caller) -> FileDeleted:
    """Not while an open batch reads it."""
    removed = await context.core.store.batches.remove_file(key.id, file_id)
    if removed is None:
        raise _nothing(file_id)
    await _removed(context, file_id, removed.path)
    return FileDeleted(id=file_id)


@router.get(
    "/{file_id}/content",
    summary="A file's bytes",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/jsonl": {}}, "description": "As they were uploaded, or written."},
        **OPENAI(*NAMED),
    },
)
async def content(file_id: FileId, context: InContext, key: Caller) -> StreamingResponse:
    file = await _own(context, key, file_id)
    pieces = context.core.artifacts.stream(file.path)
    first = await anext(pieces, b"")  # what is missing is known before the answer begins
    return StreamingResponse(
        _after(first, pieces), media_type="application/jsonl", headers={"Content-Length": str(file.bytes)}
    )


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def _removed(context: Context, file_id: str, path: str) -> None:
    try:
        await context.core.artifacts.remove([path])
    except ArtifactError as error:
        structlog.get_logger(__name__).warning("file_left", file=file_id, error=str(error))  # collected later


async def _received(request: Request, context: Context, key: ApiKey) -> StoredFile:
    """The file, stored and on record; or nothing of it."""
    kept = await context.core.store.batches.kept(key.id)
    kept.check_upload(context.quota, 0)
    upload = _Upload(context, partial(kept.check_upload, context.quota))
    try:
        async for part in parts_of(request):
            await upload.take(part)
        keep_s = _checked(upload.fields)
        name = await upload.keep()
    except BaseException:  # whatever it is: half a file is of no use, and it is raised again
        await upload.drop()
        raise
    expires = int((context.clock() + keep_s) * 1000)
    file = StoredFile(upload.id, key.id, PURPOSE_INPUT, name, upload.size, file_path(upload.id), 0, expires)
    try:
        return await context.core.store.batches.add_file(file, context.quota)
    except FilesFullError:  # by others that came meanwhile
        await _removed(context, file.id, file.path)
        raise  # after any other error, too, the bytes are collected one day


class _Upload:
    """What has come of a form so far."""

    def __init__(self, context: Context, check_room: Callable[[int], None]) -> None:
        self.id = ids.file_id(int(context.clock() * 1000), secrets.token_bytes(ids.ENTROPY_BYTES))
        self.fields: dict[str, str] = {}
        self.size = 0
        self._artifacts, self._check_room = context.core.artifacts, check_room
        self._name = ""
        self._draft: Draft | None = None

    async def take(self, part: Part) -> None:
        match part:
            case FieldRead(field, value):
                self.fields[field] = value
            case FileBegan("file", filename) if self._draft is None:
                self._name = filename
                self._draft = await self._artifacts.draft(file_path(self.id))
            case FileBegan(field):
                raise RefusedError(of_faults((Fault((field,), "is one file too many"),)))
            case FileData(data) if self._draft is not None:
                self.size += len(data)
                if self.size > MAX_BATCH_BYTES:
                    raise refused(Kind.BODY_TOO_LARGE, f"the file is larger than {MAX_BATCH_BYTES} bytes")
                self._check_room(self.size)
                await self._draft.write(data)

    async def keep(self) -> str:
        """The file's own name, when it is stored."""
        if self._draft is None:
            raise RefusedError(of_faults((Fault(("file",), "is required", FaultCode.MISSING),)))
        await self._draft.keep()
        return self._name.replace("\\", "/").rpartition("/")[2][:MAX_NAME] or "file"

    async def drop(self) -> None:
        if self._draft is not None:
            await self._draft.drop()


def _checked(fields: Mapping[str, str]) -> int:
    """Seconds that the file is kept. Raises RefusedError."""
    wrong = []
    if "purpose" not in fields:
        wrong.append(Fault(("purpose",), "is required", FaultCode.MISSING))
    elif fields["purpose"] != PURPOSE_INPUT:
        wrong.append(Fault(("purpose",), f"'{fields['purpose'][:40]}' is not served here; there is: {PURPOSE_INPUT}"))
    wrong += [
        Fault((name,), "is not a field of this request", FaultCode.UNKNOWN)
        for name in sorted(fields.keys() - {"purpose", "expires_after[anchor]", "expires_after[seconds]"})
    ]
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        wrong.append(Fault(("expires_after[anchor]",), "must be created_at"))
    keep_s, said = KEPT_S, fields.get("expires_after[seconds]")
    if said is not None:
        if not (said.isascii() and said.isdecimal() and len(said) <= 9 and MIN_KEPT_S <= int(said) <= MAX_KEPT_S):
            wrong.append(Fault(("expires_after[seconds]",), f"must be a number from {MIN_KEPT_S} to {MAX_KEPT_S}"))
        else:
            keep_s = int(said)
    if wrong:
        raise RefusedError(of_faults(tuple(wrong)))
    return keep_s


def described(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at // 1000,
        expires_at=None if file.expires_at is None else file.expires_at // 1000,
        filename=file.filename,
        purpose=file.purpose,
    )


async def _own(context: Context, key: ApiKey, file_id: str) -> StoredFile:
    file = await context.core.store.batches.file(key.id, file_id)
    if file is None:
        raise _nothing(file_id)
    return file


def _nothing(file_id: str) -> RefusedError:
    return refused(Kind.NOT_FOUND, f"there is no file {file_id[:64]} of this API key")
