"""A key's rate in the words of OpenAI's `x-ratelimit-*-requests` headers."""

from __future__ import annotations

from math import ceil

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import Scope

from router.limits import Rate

_PLACE = "letterpress.rate"


def remember_rate(request: Request, rate: Rate | None) -> None:
    """The answer to `request` will tell it. None where the key has no rate: then nothing is told."""
    if rate is not None:
        request.scope[_PLACE] = rate


def tell_rate(scope: Scope, headers: MutableHeaders) -> None:
    rate: Rate | None = scope.get(_PLACE)
    if rate is not None:
        headers["x-ratelimit-limit-requests"] = str(rate.limit)
        headers["x-ratelimit-remaining-requests"] = str(rate.remaining)
        headers["x-ratelimit-reset-requests"] = span(rate.reset_s)


def span(seconds: float) -> str:
    """As OpenAI writes it: 1s, 6m0s."""
    minutes, rest = divmod(ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
