"""When a webhook is tried again, and when it is given up. Pure: the random draw and the reply are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from router.webhooks import Again, Dead, Delivered, Verdict

PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After the first try, the second, ...: Standard Webhooks' own proposal, three and a half days in all."""
TRIES = len(PAUSES_S) + 1
JITTER = 0.2
"""Each pause is drawn from this much less to this much more: what failed together does not come back together."""
MAX_RETRY_AFTER_S = 86_400


@dataclass(frozen=True, slots=True)
class Answered:
    """The receiver's status, and its Retry-After in seconds if it sent one."""

    status: int
    retry_after_s: int | None = None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No status: no connection, no answer in time, or an address that we do not connect to."""

    why: str


def judge(reply: Answered | Unanswered, tries: int, draw: float) -> Verdict:
    """What becomes of a delivery after so many tries; `draw` is from [0, 1)."""
    match reply:
        case Answered(status) if 200 <= status < 300:
            return Delivered(status)
        case Answered(HTTPStatus.GONE):
            return Dead(410, "the receiver answered 410 Gone: this URL gets nothing more", gone=True)
        case Answered(status, retry_after_s, location):
            return _again(tries, draw, status, _said(status, location), retry_after_s or 0)
        case Unanswered(why):
            return _again(tries, draw, None, why, 0)


def _again(tries: int, draw: float, status: int | None, detail: str, at_least_s: int) -> Again | Dead:
    if tries >= TRIES:
        return Dead(status, f"given up after {tries} tries; the last: {detail}")
    pause_s = PAUSES_S[tries - 1] * (1 - JITTER + 2 * JITTER * draw)
    return Again(int(1000 * max(pause_s, min(at_least_s, MAX_RETRY_AFTER_S))), status, detail)


def _said(status: int, location: str | None) -> str:
    if 300 <= status < 400:
        where = f" to {location[:200]}" if location else ""
        return f"the receiver answered {status}, a redirect{where}, which is not followed: give the job the new URL"
    return f"the receiver answered {status}"
