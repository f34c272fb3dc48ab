"""Files of batches: transactions of the store, as plain functions of a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, or_, select

from router.batches import Kept, Quota, StoredFile
from router.errors import FileInUseError
from router.store.job_rows import Now
from router.store.tables import api_keys, batch_lines, batches, files


def add(connection: Connection, now: Now, file: StoredFile) -> StoredFile:
    at = connection.execute(select(now)).scalar_one()
    values = {
        "id": file.id,
        "api_key_id": file.api_key_id,
        "purpose": file.purpose,
        "filename": file.filename,
        "bytes": file.bytes,
        "path": file.path,
        "created_at": at,
        "expires_at": file.expires_at,
    }
    return stored(connection.execute(insert(files).values(values).returning(files)).one())


def upload(connection: Connection, now: Now, file: StoredFile, quota: Quota) -> StoredFile:
    """Raises FilesFullError."""
    lock(connection, file.api_key_id)
    kept(connection, now, file.api_key_id).check_upload(quota, file.bytes)
    return add(connection, now, file)


def lock(connection: Connection, api_key_id: str) -> None:
    """Of two who look whether there is room, one waits here for the other."""
    connection.execute(select(api_keys.c.id).where(api_keys.c.id == api_key_id).with_for_update(key_share=True))


def kept(connection: Connection, now: Now, api_key_id: str) -> Kept:
    held = select(func.count(), func.coalesce(func.sum(files.c.bytes), 0)).where(*_own(now, api_key_id))
    count, size = connection.execute(held).one()
    still = (batches.c.api_key_id == api_key_id, batches.c.ended_at.is_(None))
    promised = connection.execute(select(func.coalesce(func.sum(batches.c.promised), 0)).where(*still)).scalar_one()
    return Kept(count, int(size), int(promised))


def find(connection: Connection, now: Now, api_key_id: str, file_id: str) -> StoredFile | None:
    row = connection.execute(select(files).where(*_own(now, api_key_id), files.c.id == file_id)).one_or_none()
    return None if row is None else stored(row)


def input_of(connection: Connection, api_key_id: str, file_id: str) -> StoredFile | None:
    """Also one that has expired: while an open batch reads it, it is not forgotten."""
    wanted = select(files).where(files.c.api_key_id == api_key_id, files.c.id == file_id)
    row = connection.execute(wanted).one_or_none()
    return None if row is None else stored(row)


def every(
    connection: Connection,
    now: Now,
    api_key_id: str,
    purpose: str | None,
    after: str | None,
    limit: int,
    *,
    oldest_first: bool,
) -> Sequence[StoredFile]:
    order = files.c.id.asc() if oldest_first else files.c.id.desc()
    found = select(files).where(*_own(now, api_key_id)).order_by(order).limit(limit)
    if purpose is not None:
        found = found.where(files.c.purpose == purpose)
    if after is not None:
        found = found.where(files.c.id > after if oldest_first else files.c.id < after)
    return [stored(row) for row in connection.execute(found)]


def remove(connection: Connection, now: Now, api_key_id: str, file_id: str) -> StoredFile | None:
    reader = select(batches.c.id).where(batches.c.input_file_id == file_id, batches.c.ended_at.is_(None)).limit(1)
    batch_id = connection.execute(reader.where(batches.c.api_key_id == api_key_id)).scalar_one_or_none()
    if batch_id is not None:
        raise FileInUseError(file_id, batch_id)
    row = connection.execute(
        delete(files).where(*_own(now, api_key_id), files.c.id == file_id).returning(files)
    ).one_or_none()
    return None if row is None else stored(row)


def forget(connection: Connection, now: Now, older_ms: int | None, limit: int) -> Sequence[str]:
    read = select(batches.c.id).where(batches.c.input_file_id == files.c.id, batches.c.ended_at.is_(None)).exists()
    over = select(files.c.id).where(files.c.expires_at <= now, ~read).limit(limit)
    gone = connection.scalars(over.with_for_update(skip_locked=True)).all()
    paths = connection.scalars(delete(files).where(files.c.id.in_(gone)).returning(files.c.path)).all() if gone else []
    ended = select(batches.c.id).where(batches.c.id == batch_lines.c.batch_id, batches.c.ended_at.is_not(None)).exists()
    lines = connection.execute(select(batch_lines.c.batch_id, batch_lines.c.line).where(ended).limit(limit)).all()
    for batch_id in {row.batch_id for row in lines}:
        numbers = [row.line for row in lines if row.batch_id == batch_id]
        connection.execute(
            delete(batch_lines).where(batch_lines.c.batch_id == batch_id, batch_lines.c.line.in_(numbers))
        )
    if older_ms is not None:
        empty = ~select(batch_lines.c.line).where(batch_lines.c.batch_id == batches.c.id).exists()
        old = select(batches.c.id).where(batches.c.ended_at <= now - older_ms, empty).limit(limit)
        names = connection.scalars(old.with_for_update(skip_locked=True)).all()
        connection.execute(delete(batches).where(batches.c.id.in_(names)))
    return paths


def _own(now: Now, api_key_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return files.c.api_key_id == api_key_id, or_(files.c.expires_at.is_(None), files.c.expires_at > now)


def stored(row: Row[Any]) -> StoredFile:
    return StoredFile(
        id=row.id,
        api_key_id=row.api_key_id,
        purpose=row.purpose,
        filename=row.filename,
        bytes=row.bytes,
        path=row.path,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
