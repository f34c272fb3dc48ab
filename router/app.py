"""The public app: the dialects wired to one core. Served on a unix socket; the edge is its only caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Response

from router.api import artifacts, batches, bulk, errors, files, generate, ideogram, jobs, models, openai, page, webhooks
from router.api.context import Context, InContext
from router.api.refusals import MAX_BODY_BYTES, Kind
from router.api.requests import BodyBound, Rim, Served
from router.contract import Health, Readiness
from router.core import Core
from router.errors import StoreUnavailableError

ABOUT = """
Images from Ideogram 4, made by your own workers. One endpoint, several dialects: the seed-style `/generate`,
OpenAI's Images, Files and Batches, Ideogram's own, and native jobs that outlive the connection.

Send an API key as `Authorization: Bearer <key>`. Every answer carries `X-Request-Id`; quote it when you ask the
operator about one. 503 comes with `Retry-After`: nothing was promised, and asking again is safe.
"""

_health = APIRouter(tags=["health"])
READYZ = {503: {"model": Readiness}, **errors.described(errors.Dialect.PROBLEM, Kind.INVALID_REQUEST)}


@_health.get("/healthz", summary="Whether the router can answer", responses={503: {"model": Health}})
async def healthz(context: InContext, response: Response) -> Health:
    """Needs no key. `ready_pools` names those that could make an image now."""
    found = await health(context.core, context.version)
    response.status_code = 200 if found.status == "ok" else 503
    return found


@_health.get("/readyz", summary="Whether to send traffic here", responses=READYZ)
async def readyz(
    context: InContext,
    response: Response,
    pool: Annotated[str | None, Query(max_length=64, description="Also wants a ready worker of this pool.")] = None,
) -> Readiness:
    """Needs no key. No when the store or the artifact store does not do its part, or this router is leaving."""
    found = await context.examiner.examine(pool)
    response.status_code = 200 if found.ready else 503
    return found


async def health(core: Core, version: str) -> Health:
    """Both apps say the same."""
    pools = list(core.fleet.ready_pools())
    try:
        await core.store.ping()
    except StoreUnavailableError as error:
        return Health(status=f"the store does not answer: {error}", version=version, ready_pools=pools)
    return Health(status="ok", version=version, ready_pools=pools)


class DescribedApp(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Without FastAPI's own shape of a 422: the routes say themselves how a refusal looks."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for methods in document["paths"].values():
                for operation in methods.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
        return super().openapi()


def public_app(context: Context, observe: Callable[[Served], None]) -> FastAPI:
    """The app. `observe` is told of every request that has ended."""
    app = DescribedApp(
        title="Letterpress",
        summary="Ideogram 4 from your own GPU machines.",
        description=ABOUT,
        version=context.version,
        # The pages that FastAPI would serve load scripts from a CDN; ours (`router.api.page`) does without.
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    errors.install(app)
    streamed = {bulk.PATH, files.PATH, *openai.ABSENT, *ideogram.ABSENT}
    app.add_middleware(BodyBound, max_bytes=MAX_BODY_BYTES, streamed=streamed)
    app.add_middleware(Rim, observe=observe)
    for part in (
        generate.router,
        openai.router,
        ideogram.router,
        models.router,
        files.router,
        batches.router,
        bulk.router,
        jobs.router,
        artifacts.router,
        webhooks.router,
        _health,
        page.router,
    ):
        app.include_router(part)
    app.webhooks.include_router(webhooks.described)
    return app
