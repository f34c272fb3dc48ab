"""The admin app's routes about API keys: made, listed, limited, revoked, and what they have used."""

from __future__ import annotations

import secrets
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from router.admin_context import CHANGED, CHANGES, InContext, refusals
from router.api.auth import digest
from router.api.errors import BODY, NAMED
from router.api.refusals import Kind, RefusedError, refused
from router.api.requests import json_only
from router.api.views import moment
from router.contract import KeyLimitsView, KeyName, KeyRequest, KeyView, NewKey, UsageView
from router.limits import KeyLimits
from router.store import KeyRecord

PREFIX = "lp_"
"""Tells a key of ours from others' in a log or a leak scanner."""
SECRET_BYTES = 32
DEFAULT_KEY = "default"
"""The name under which the key file's key stands in the store."""
USAGE_DAYS = 30

router = APIRouter(prefix="/keys", tags=["keys"])

Name = Annotated[KeyName, Path()]


@router.get("", summary="All keys", responses=refusals())
async def every(context: InContext) -> list[KeyView]:
    return [_view(record) for record in await context.core.store.api_keys()]


@router.post(
    "",
    summary="Make a key",
    status_code=201,
    dependencies=[*CHANGES, Depends(json_only)],
    responses=refusals(*CHANGED, *BODY, Kind.EXISTS),
)
async def create(body: KeyRequest, context: InContext) -> NewKey:
    """The answer shows the key this once: only its hash is kept."""
    key = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    record = await context.core.store.create_api_key(body.name, digest(key), _limits(body.limits))
    return NewKey(**_view(record).model_dump(), key=key)


@router.put(
    "/{name}/limits",
    summary="Limit a key",
    dependencies=[*CHANGES, Depends(json_only)],
    responses=refusals(*CHANGED, *BODY, *NAMED),
)
async def limit(name: Name, body: KeyLimitsView, context: InContext) -> KeyView:
    """From now on (at another router, within a second); what was promised is kept."""
    record = await context.core.store.limit_api_key(name, _limits(body))
    context.core.callers.changed()
    return _view(_known(name, record))


@router.delete(
    "/{name}", summary="Revoke a key", dependencies=CHANGES, responses=refusals(*CHANGED, *NAMED, Kind.EXISTS)
)
async def revoke(name: Name, context: InContext) -> KeyView:
    """Nobody is let in with it from now on (by another router of the same database, within a second); jobs that were
    promised are finished. Again is the same."""
    if name == DEFAULT_KEY:
        raise refused(Kind.EXISTS, "the default key is what the router's key file holds; put another key there instead")
    record = await context.core.store.revoke_api_key(name)
    context.core.callers.changed()
    return _view(_known(name, record))


@router.get("/{name}/usage", summary="What a key has used", responses=refusals(*NAMED))
async def usage(name: Name, context: InContext, since: Annotated[date | None, Query()] = None) -> list[UsageView]:
    """By day (UTC), of the last 30 days unless `since` says otherwise. Days without images are left out."""
    begin = since or (datetime.now(UTC) - timedelta(days=USAGE_DAYS)).date()
    days = await context.core.store.used(name, begin.isoformat())
    if days is None:
        raise _nobody(name)
    return [
        UsageView(
            day=date.fromisoformat(used.day), images=used.images, pixels=used.pixels, gpu_seconds=used.gpu_ms / 1000
        )
        for used in days
    ]


def _known(name: str, record: KeyRecord | None) -> KeyRecord:
    if record is None:
        raise _nobody(name)
    return record


def _nobody(name: str) -> RefusedError:
    return refused(Kind.NOT_FOUND, f"there is no API key named {name}; GET /keys lists them")


def _limits(view: KeyLimitsView) -> KeyLimits:
    pools = None if view.pools is None else tuple(view.pools)
    return KeyLimits(view.per_minute, view.running, view.waiting, pools)


def _view(record: KeyRecord) -> KeyView:
    limits = record.key.limits
    return KeyView(
        id=record.key.id,
        name=record.key.name,
        fingerprint=record.fingerprint,
        created_at=moment(record.created_at),
        revoked_at=None if record.revoked_at is None else moment(record.revoked_at),
        limits=KeyLimitsView(
            per_minute=limits.per_minute,
            running=limits.running,
            waiting=limits.waiting,
            pools=None if limits.pools is None else list(limits.pools),
        ),
    )
