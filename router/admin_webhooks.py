"""The admin app's webhooks: what is on its way, what was given up, and sending it again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from router.admin_context import CHANGED, CHANGES, InContext, refusals
from router.api.errors import NAMED
from router.api.refusals import Kind, refused
from router.api.views import moment
from router.contract import DeliveryState, DeliveryView, Replayed
from router.webhooks import Delivery

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


@router.get(
    "",
    summary="Webhooks on their way, delivered and dead; the newest first",
    responses=refusals(Kind.INVALID_REQUEST),
)
async def webhooks(
    context: InContext,
    state: DeliveryState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[DeliveryView]:
    return [_shown(one) for one in await context.core.store.outbox.deliveries(state, limit)]


@router.post("/replay", summary="Replay all dead webhooks", dependencies=CHANGES, responses=refusals(*CHANGED))
async def replay_dead(context: InContext) -> Replayed:
    count = await context.core.store.outbox.replay_dead()
    context.wake_webhooks()
    return Replayed(count=count)


@router.post("/{name}/replay", summary="Replay a webhook", dependencies=CHANGES, responses=refusals(*CHANGED, *NAMED))
async def replay(name: Annotated[str, Path(max_length=64)], context: InContext) -> DeliveryView:
    """Due now, with all its tries before it, whatever became of it; also to a URL that had answered 410."""
    found = await context.core.store.outbox.replay(name)
    if found is None:
        raise refused(Kind.NOT_FOUND, f"there is no webhook {name}; GET /webhooks lists them")
    context.wake_webhooks()
    return _shown(found)


def _shown(one: Delivery) -> DeliveryView:
    return DeliveryView(
        id=one.id,
        url=one.url,
        event=one.event,
        subject=one.subject,
        state=one.state,
        tries=one.tries,
        created_at=moment(one.created_at),
        due_at=moment(one.due_at),
        ended_at=None if one.ended_at is None else moment(one.ended_at),
        status=one.status,
        detail=one.detail,
    )
