"""What every route of the admin app needs and may answer, and who may change something: whoever has the admin key."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from router.api.auth import digest
from router.api.errors import Answers, Dialect, described
from router.api.refusals import Kind, unauthorized
from router.core import Core
from router.metrics import Metrics
from router.readiness import Examiner

_SCHEME = HTTPBearer(auto_error=False, scheme_name="admin-key", description="The admin key of this router.")


@dataclass(frozen=True, slots=True)
class AdminContext:
    core: Core
    metrics: Metrics
    admin_key: str = field(repr=False)
    version: str
    examiner: Examiner
    wake_webhooks: Callable[[], None] = lambda: None
    tunnels: Path | None = None
    """The file that the tunnel service of this host writes."""


async def _of(request: Request) -> AdminContext:
    return cast("AdminContext", request.app.state.context)


InContext = Annotated[AdminContext, Depends(_of)]


async def _operator(
    context: InContext, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_SCHEME)]
) -> None:
    if credentials is None:
        raise unauthorized("no admin key was sent; send the header: Authorization: Bearer <admin key>")
    if not hmac.compare_digest(digest(credentials.credentials), digest(context.admin_key)):
        raise unauthorized("this is not the admin key of this router")


CHANGES = [Depends(_operator)]
"""What a route that changes something depends on."""

CHANGED = (Kind.UNAUTHORIZED,)
"""What such a route may answer because of it."""


def refusals(*kinds: Kind) -> Answers:
    """A route's refusals of these kinds and of those that every route here has."""
    return described(Dialect.PROBLEM, Kind.MISDIRECTED, Kind.INTERNAL, Kind.UNAVAILABLE, *kinds)
