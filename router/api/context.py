"""What every route of the public app needs, handed over once when the app is made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from router.api.links import Links
from router.batches import Quota
from router.core import Core
from router.readiness import Examiner
from router.webhooks.addresses import Network


@dataclass(frozen=True, slots=True)
class Context:
    """`closing` is set when the router is told to stop; `clock` gives seconds since the epoch."""

    core: Core
    links: Links
    closing: asyncio.Event
    draw_seed: Callable[[], int]
    clock: Callable[[], float]
    version: str
    examiner: Examiner
    batch_news: Callable[[], None] = lambda: None
    """Called when a batch is new, or is to be cancelled."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """The operator's own names for models."""
    plain_webhooks: bool = False
    """Whether the operator has named addresses that webhooks may go to without TLS."""
    webhook_exceptions: tuple[Network, ...] = ()
    """Addresses beside the public ones that webhooks may go to."""
    quota: Quota = Quota()  # noqa: RUF009 - frozen
    """What each key's files may be together."""
    edge_sends_artifacts: bool = False
    """Whether images in files are named to the edge (X-Accel-Redirect) instead of being sent from here."""


async def _of(request: Request) -> Context:
    return cast("Context", request.app.state.context)


InContext = Annotated[Context, Depends(_of)]
