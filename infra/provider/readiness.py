"""Waiting until a unit serves: what it says of itself meanwhile, and why it does not in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

import httpx
from pydantic import ValidationError

from infra.hosts import Host, Progress, UnitState
from infra.provider.resource import ProviderError
from router.contract import Health
from worker.contract import WorkerState, WorkerStatus

ANSWER_S = 5.0
"""How long a loopback server may take for a health question while its machine is busy loading weights."""
POLL_S, POLL_MOST_S = 0.3, 3.0
SHOWN_LINES = 15


class Verdict(StrEnum):
    READY = "ready"
    WAIT = "wait"
    BROKEN = "broken"  # it says itself that waiting is of no use


@dataclass(frozen=True, slots=True)
class Answer:
    """What a unit said of its readiness; `reason` is for people."""

    verdict: Verdict
    reason: str = ""


Ask = Callable[[], Awaitable[Answer]]


def loopback_client() -> httpx.AsyncClient:
    """A proxy from the environment has no business between us and this computer's own ports."""
    return httpx.AsyncClient(timeout=ANSWER_S, trust_env=False)


async def ask_worker_on(host: Host, port: int) -> Answer:
    """Ask a worker on a host's loopback for its readiness."""
    answer = await host.get(port, "/readyz")
    return _worker_says(answer[1]) if answer else Answer(Verdict.WAIT, "does not answer yet")


def _worker_says(content: bytes) -> Answer:
    try:
        status = WorkerStatus.model_validate_json(content)
    except ValidationError:
        return Answer(Verdict.WAIT, "answers, but not as a worker does")
    match status.state:
        case WorkerState.READY:
            return Answer(Verdict.READY)
        case WorkerState.BROKEN:
            return Answer(Verdict.BROKEN, status.reason or "broken")
        case WorkerState.LOADING | WorkerState.DRAINING:
            return Answer(Verdict.WAIT, status.reason or status.state)


async def ask_router(client: httpx.AsyncClient, url: str) -> Answer:
    """Ask the router for its health, by the way that its users take."""
    try:
        response = await client.get(f"{url}/healthz")
    except httpx.TransportError:
        return Answer(Verdict.WAIT, "the edge does not answer yet")
    if response.status_code != httpx.codes.OK:
        return Answer(Verdict.WAIT, f"the edge answers {response.status_code}: the router does not serve yet")
    return _router_says(response.content)


async def ask_router_on(host: Host, port: int) -> Answer:
    """Ask one of several routers on a host, by its admin app."""
    answer = await host.get(port, "/healthz")
    if answer is None or answer[0] != httpx.codes.OK:
        return Answer(Verdict.WAIT, "does not answer yet")
    return _router_says(answer[1])


def _router_says(content: bytes) -> Answer:
    try:
        Health.model_validate_json(content)
    except ValidationError:
        return Answer(Verdict.WAIT, "something answers, but not as a router does")
    return Answer(Verdict.READY)


async def until_ready(host: Host, unit: str, ask: Ask, within_s: float, progress: Progress) -> None:
    """Return when the unit says that it is ready.

    Raises ProviderError when its process ends, when it calls itself broken, or after `within_s` seconds;
    the unit is left as it is.
    """
    answer = Answer(Verdict.WAIT)
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        async with asyncio.timeout(within_s):
            while answer.verdict is not Verdict.READY:
                answer = await ask()
                state = (await host.observe(unit)).state
                if answer.verdict is Verdict.BROKEN:
                    raise await _failure(host, unit, f"is broken: {answer.reason}")
                if state is UnitState.STOPPED or state is UnitState.ORPHANED:
                    raise await _failure(host, unit, "ended before it was ready")
                if answer.verdict is Verdict.WAIT:
                    progress(answer.reason)
                    await asyncio.sleep(pause_s(clock() - begun))
    except TimeoutError:
        said = f"; it says: {answer.reason}" if answer.reason else ""
        raise await _failure(host, unit, f"is not ready after {within_s:g} s{said}", slow=True) from None


def pause_s(waited_s: float) -> float:
    """Until the next look. One costs a machine several processes, and weights may load for an hour: a tenth of what was
    waited already is added at most."""
    return min(max(POLL_S, waited_s / 10), POLL_MOST_S)


async def _failure(host: Host, unit: str, what: str, *, slow: bool = False) -> ProviderError:
    tail = await host.tail(unit, SHOWN_LINES)
    advice = (
        "It goes on by itself: watch it with `make logs`, and run `make deploy` again to go on waiting"
        if slow
        else "Mend what the log names, then run `make deploy` again; nothing has been deleted"
    )
    return ProviderError(f"{unit} on {host.name} {what}. Its log ends with:\n{tail or '(nothing)'}\n{advice}.")
