"""API keys: transactions of the store, as plain functions of a connection. Only hashes are kept."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, insert, select, update

from router.ids import key_id
from router.store import ApiKey
from router.store.tables import api_keys


def put(connection: Connection, now: ColumnElement[int], entropy: bytes, name: str, sha256: str) -> ApiKey:
    replaced = connection.execute(
        update(api_keys).where(api_keys.c.name == name).values(sha256=sha256).returning(api_keys.c.id)
    ).scalar_one_or_none()
    if replaced is not None:
        return ApiKey(id=replaced, name=name)
    at = connection.execute(select(now)).scalar_one()
    key = ApiKey(id=key_id(at, entropy), name=name)
    connection.execute(insert(api_keys).values(id=key.id, name=name, sha256=sha256, created_at=at))
    return key


def find(connection: Connection, sha256: str) -> ApiKey | None:
    row = connection.execute(select(api_keys.c.id, api_keys.c.name).where(api_keys.c.sha256 == sha256)).one_or_none()
    return None if row is None else ApiKey(id=row.id, name=row.name)
