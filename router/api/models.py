"""Which models there are by name: ours, what registered workers say that they serve, and names that clients know.

A client with `gpt-image-1` or `dall-e-3` written into it need change nothing else; the operator may add names
(`LETTERPRESS_ROUTER_MODEL_ALIASES`). An alias is taken and can be looked up, and the list has only what is real.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from router.api.auth import Caller
from router.api.context import Context, InContext
from router.api.errors import Dialect, documented
from router.api.refusals import Kind, RefusedError, refused
from router.contract.dialects.images import MODEL, particular
from worker.contract import Frozen

PUBLISHED = 1_780_444_800
"""2026-06-03, the day of the weights' licence; OpenAI's model objects must carry a time."""

router = APIRouter(prefix="/v1/models", tags=["openai"])
OPENAI = partial(documented, Dialect.OPENAI)


class Model(Frozen):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since the epoch.")
    owned_by: str = "ideogram-ai"


class ModelList(Frozen):
    object: Literal["list"] = "list"
    data: list[Model]


@router.get("", summary="The models that are served", responses=OPENAI())
async def models(context: InContext, _: Caller) -> ModelList:
    return ModelList(data=[_described(name) for name in _served(context)])


@router.get("/{model:path}", summary="One model", responses=OPENAI(Kind.MODEL_NOT_FOUND))
async def model(model: str, context: InContext, _: Caller) -> Model:
    """By a name of ours, a worker's, or an alias."""
    if not _serves(context, wished(context, model)):
        raise _not_served(context, model)
    return _described(model)


async def resolved(context: Context, pool: str, name: str | None) -> str | None:
    """What a worker must say of itself to make images of this model; None: any will do.

    It may be one that no worker serves yet, where there may be such a worker soon: the pool has none, or one that has
    not said what it serves, or expects more. Raises RefusedError where it has not.
    """
    meant = wished(context, name)
    if _serves(context, meant):
        return meant
    said = [view.model for view in context.core.fleet.views() if view.pool == pool]
    if said and all(said) and not await context.core.store.pool_expected(pool):
        raise _not_served(context, name or "")
    return meant


def wished(context: Context, name: str | None) -> str | None:
    """As `resolved`, whether there is such a worker or not."""
    if name is None:
        return None
    meant = context.aliases.get(name, name)
    return meant if meant != MODEL and meant in _served(context) else particular(meant)


def _serves(context: Context, meant: str | None) -> bool:
    return meant is None or meant in _served(context)


def _not_served(context: Context, name: str) -> RefusedError:
    there = ", ".join(_served(context))
    return refused(Kind.MODEL_NOT_FOUND, f"model '{name[:80]}' is not served here; there is: {there}")


def _served(context: Context) -> tuple[str, ...]:
    theirs = {view.model for view in context.core.fleet.views() if view.model}
    return (MODEL, *sorted(theirs - {MODEL}))


def _described(name: str) -> Model:
    return Model(id=name, created=PUBLISHED)
