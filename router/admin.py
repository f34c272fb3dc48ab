"""The admin app: workers come and go, and the operator looks. On loopback only, reached through SSH.

Reading is free to whoever is on the host; changing wants the admin key. A browser on the host is a way in for
any web page, by DNS rebinding: so the Host header must be a loopback name, and no answer allows another origin.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Response
from fastapi.responses import HTMLResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from router import admin_keys, admin_webhooks, console
from router.admin_context import CHANGED, CHANGES, AdminContext, InContext, refusals
from router.api import errors
from router.api.errors import BODY, NAMED
from router.api.refusals import MAX_BODY_BYTES, Kind, Refusal, RefusedError, refused
from router.api.requests import BodyBound, Rim, json_only
from router.app import DescribedApp, health
from router.contract import (
    Health,
    PoolExpected,
    PoolName,
    PoolView,
    Readiness,
    TunnelsView,
    WorkerName,
    WorkerRegistration,
    WorkerView,
)
from router.metrics import MEDIA_TYPE, look
from router.tunnels.status import read_status

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
Name = Annotated[WorkerName, Path()]

_router = APIRouter()


@_router.get("/workers", tags=["workers"], summary="All workers", responses=refusals())
async def workers(context: InContext) -> list[WorkerView]:
    return list(context.core.fleet.views())


@_router.get("/workers/{name}", tags=["workers"], summary="One worker", responses=refusals(*NAMED))
async def worker(name: Name, context: InContext) -> WorkerView:
    for view in context.core.fleet.views():
        if view.name == name:
            return view
    raise _nobody(name)


@_router.put(
    "/workers/{name}",
    tags=["workers"],
    summary="Use a worker",
    dependencies=[*CHANGES, Depends(json_only)],
    responses=refusals(*CHANGED, *BODY, Kind.METHOD_NOT_ALLOWED),
)
async def register(name: Name, body: WorkerRegistration, context: InContext) -> WorkerView:
    """Registers or updates; again with the same body changes nothing. A worker that was draining is so no more."""
    return await context.core.fleet.register(name, body)


@_router.post(
    "/workers/{name}/drain",
    tags=["workers"],
    summary="Give a worker no new job",
    dependencies=CHANGES,
    responses=refusals(*CHANGED, *NAMED),
)
async def drain(name: Name, context: InContext) -> WorkerView:
    """What it runs is finished."""
    view = await context.core.fleet.drain(name)
    if view is None:
        raise _nobody(name)
    return view


@_router.post(
    "/workers/{name}/release",
    tags=["workers"],
    summary="Trust a worker in quarantine again",
    dependencies=CHANGES,
    responses=refusals(*CHANGED, *NAMED),
)
async def release(name: Name, context: InContext) -> WorkerView:
    """What it failed at before counts no more. One that is in no quarantine stays as it is."""
    view = await context.core.fleet.release(name)
    if view is None:
        raise _nobody(name)
    return view


@_router.delete(
    "/workers/{name}",
    tags=["workers"],
    summary="Forget a worker",
    status_code=204,
    dependencies=CHANGES,
    responses=refusals(*CHANGED, Kind.INVALID_REQUEST, Kind.METHOD_NOT_ALLOWED),
)
async def remove(name: Name, context: InContext) -> None:
    """Gone is success. What it was running is tried again elsewhere."""
    await context.core.fleet.remove(name)


@_router.get("/pools", tags=["pools"], summary="All pools", responses=refusals())
async def pools(context: InContext) -> list[PoolView]:
    return list(await context.core.fleet.pools())


@_router.put(
    "/pools/{pool}/expected",
    tags=["pools"],
    summary="A pool's machines boot",
    dependencies=[*CHANGES, Depends(json_only)],
    responses=refusals(*CHANGED, *BODY, Kind.METHOD_NOT_ALLOWED),
)
async def expect(pool: Annotated[PoolName, Path()], body: PoolExpected, context: InContext) -> PoolExpected:
    """Jobs for it are taken on, and held, though no worker is registered yet; for so many seconds from now."""
    await context.core.store.expect_pool(pool, body.seconds * 1000)
    return body


@_router.get(
    "/tunnels",
    tags=["tunnels"],
    summary="This host's tunnels, as their service wrote them down last",
    responses=refusals(),
)
async def tunnels(context: InContext) -> TunnelsView:
    return await asyncio.to_thread(read_status, context.tunnels)


@_router.get(
    "/healthz",
    tags=["health"],
    summary="Whether the router can answer",
    responses=refusals() | {503: {"model": Health, "description": "It cannot, and why."}},
)
async def healthz(context: InContext, response: Response) -> Health:
    found = await health(context.core, context.version)
    response.status_code = 200 if found.status == "ok" else 503
    return found


@_router.get(
    "/readyz",
    tags=["health"],
    summary="Whether to send traffic here",
    responses=refusals() | {503: {"model": Readiness, "description": "No, and why."}},
)
async def readyz(context: InContext, response: Response, pool: str | None = None) -> Readiness:
    found = await context.examiner.examine(pool)
    response.status_code = 200 if found.ready else 503
    return found


@_router.get(
    "/metrics",
    tags=["health"],
    summary="Prometheus metrics",
    response_class=Response,
    responses=refusals() | {200: {"content": {MEDIA_TYPE: {}}, "description": "In Prometheus' text format."}},
)
async def metrics(context: InContext) -> Response:
    text = context.metrics.text(await look(context.core, await tunnels(context)))
    return Response(text, media_type=MEDIA_TYPE)


@_router.get("/", include_in_schema=False, response_class=HTMLResponse)
async def page(context: InContext) -> HTMLResponse:
    fleet = context.core.fleet
    html = console.page(await fleet.pools(), fleet.views(), context.version, datetime.now(UTC))
    # Nothing is loaded from anywhere, and no other page may frame this one.
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})


def _nobody(name: str) -> RefusedError:
    return refused(Kind.NOT_FOUND, f"no worker is registered as {name}; GET /workers lists them")


class LoopbackNames:
    """ASGI middleware: a request whose Host is not a loopback name came here by somebody's trick."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_loopback(Headers(scope=scope).get("host", "")):
            names = ", ".join(sorted(_LOOPBACK))
            refusal = Refusal(Kind.MISDIRECTED, f"the admin app answers only to the names {names}; use one of them")
            await errors.answer(refusal, errors.Dialect.PROBLEM)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_loopback(host: str) -> bool:
    """Whatever the port: a forward's near end may have any."""
    name, colon, port = host.lower().rpartition(":")
    return (name if colon and port.isdecimal() else host.lower()) in _LOOPBACK


def admin_app(context: AdminContext) -> FastAPI:
    """The app. Its own requests are counted with the public app's."""
    app = DescribedApp(
        title="Letterpress, admin",
        summary="Workers, pools, metrics; for the operator.",
        version=context.version,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    errors.install(app)
    app.add_middleware(BodyBound, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(LoopbackNames)
    app.add_middleware(Rim, observe=context.metrics.served)
    app.include_router(_router)
    for part in (admin_keys.router, admin_webhooks.router):
        app.include_router(part)
    return app
