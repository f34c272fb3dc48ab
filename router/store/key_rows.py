"""API keys and what they have used: transactions of the store, as plain functions of a connection.

Only hashes are kept. A key is looked up by its fingerprint, and the whole hash is compared in constant time.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, case, insert, null, select, text, update

from router.errors import KeyExistsError
from router.ids import key_id
from router.limits import KeyLimits
from router.store import ApiKey, KeyRecord, UsedInADay
from router.store.tables import api_keys, usage
from worker.contract import Timings

FINGERPRINT_CHARS = 12

_ALIKE = select(api_keys).where(api_keys.c.fingerprint == bindparam("fingerprint"), api_keys.c.revoked_at.is_(None))
_USED = text(
    "INSERT INTO usage (api_key_id, day, images, pixels, gpu_ms) VALUES (:key, :day, 1, :pixels, :gpu_ms) "
    "ON CONFLICT (api_key_id, day) DO UPDATE SET images = usage.images + 1, "
    "pixels = usage.pixels + excluded.pixels, gpu_ms = usage.gpu_ms + excluded.gpu_ms"
)


def put(connection: Connection, now: ColumnElement[int], entropy: bytes, name: str, sha256: str) -> ApiKey:
    """The key, which is made if there was none of the name. Of two at once, one loses with an IntegrityError."""
    replaced = connection.execute(
        update(api_keys)
        .where(api_keys.c.name == name)
        .values(sha256=sha256, fingerprint=sha256[:FINGERPRINT_CHARS], revoked_at=null())
        .returning(api_keys)
    ).one_or_none()
    if replaced is not None:
        return _record(replaced).key
    return _insert(connection, now, entropy, name, sha256, KeyLimits()).key


def create(
    connection: Connection, now: ColumnElement[int], entropy: bytes, name: str, sha256: str, limits: KeyLimits
) -> KeyRecord:
    if connection.execute(select(api_keys.c.id).where(api_keys.c.name == name)).one_or_none() is not None:
        raise KeyExistsError(name)
    return _insert(connection, now, entropy, name, sha256, limits)


def find(connection: Connection, sha256: str) -> ApiKey | None:
    for row in connection.execute(_ALIKE, {"fingerprint": sha256[:FINGERPRINT_CHARS]}):
        if hmac.compare_digest(row.sha256, sha256):
            return _record(row).key
    return None


def every(connection: Connection) -> Sequence[KeyRecord]:
    return [_record(row) for row in connection.execute(select(api_keys).order_by(api_keys.c.name))]


def revoke(connection: Connection, now: ColumnElement[int], name: str) -> KeyRecord | None:
    """Again is the same: the first time stays on record."""
    first = case((api_keys.c.revoked_at.is_(None), now), else_=api_keys.c.revoked_at)
    return _changed(connection, name, {"revoked_at": first})


def limit(connection: Connection, name: str, limits: KeyLimits) -> KeyRecord | None:
    """The bucket begins anew: tokens of another limit say nothing."""
    return _changed(connection, name, {**_limits(limits), "tokens": null(), "tokens_at": null()})


def use(connection: Connection, api_key_id: str, at: int, pixels: int, timings: Timings) -> None:
    """One more image, in the transaction that finishes it."""
    connection.execute(
        _USED,
        {
            "key": api_key_id,
            "day": day_of(at),
            "pixels": pixels,
            "gpu_ms": round(timings.gpu * 1000),
        },
    )


def used(connection: Connection, name: str, since: str) -> Sequence[UsedInADay] | None:
    """None if there is no such key."""
    key = connection.execute(select(api_keys.c.id).where(api_keys.c.name == name)).scalar_one_or_none()
    if key is None:
        return None
    days = select(usage).where(usage.c.api_key_id == key, usage.c.day >= since).order_by(usage.c.day)
    return [UsedInADay(row.day, row.images, row.pixels, row.gpu_ms) for row in connection.execute(days)]


def day_of(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).date().isoformat()


def limits_of(row: Row[Any]) -> KeyLimits:
    pools = None if row.pools is None else tuple(json.loads(row.pools))
    return KeyLimits(row.per_minute, row.max_running, row.max_waiting, pools)


def _insert(
    connection: Connection, now: ColumnElement[int], entropy: bytes, name: str, sha256: str, limits: KeyLimits
) -> KeyRecord:
    at = connection.execute(select(now)).scalar_one()
    row = connection.execute(
        insert(api_keys)
        .values(
            id=key_id(at, entropy),
            name=name,
            sha256=sha256,
            fingerprint=sha256[:FINGERPRINT_CHARS],
            created_at=at,
            **_limits(limits),
        )
        .returning(api_keys)
    ).one()
    return _record(row)


def _changed(connection: Connection, name: str, values: dict[str, Any]) -> KeyRecord | None:
    row = connection.execute(
        update(api_keys).where(api_keys.c.name == name).values(values).returning(api_keys)
    ).one_or_none()
    return None if row is None else _record(row)


def _limits(limits: KeyLimits) -> dict[str, Any]:
    return {
        "per_minute": limits.per_minute,
        "max_running": limits.running,
        "max_waiting": limits.waiting,
        "pools": None if limits.pools is None else json.dumps(limits.pools),
    }


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(ApiKey(row.id, row.name, limits_of(row)), row.fingerprint, row.created_at, row.revoked_at)
