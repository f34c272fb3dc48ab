"""Lines that nobody could make when they were asked for: when each is asked for again, and when it is given up. Pure;
the clock is passed in.

What one line is refused for may be that line's own (a model that nobody has), or come of a machine that is away for
all of them. Images of lines that were never put aside tell the one from the other: the others do go on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from math import inf

from router.client.batch.errors import BatchError, NotNowError
from router.client.batch.lines import Line

UNMAKEABLE_S, PATIENCE_S = 90.0, 3600.0
IN_A_ROW = 64
"""Refusals without an image in between, after which whoever is refused waits: it seems to meet every line."""


@dataclass(frozen=True, slots=True)
class Put:
    """A line, when it was refused first, and when it is asked for again."""

    line: Line
    since: float
    due: float


class Aside:
    """A line that is still refused `give_up_s` seconds after its first refusal is given up, if a line that was never
    put aside has been made since. Otherwise it waits for `patience_s` seconds without any image: then it is given up if
    one was made since it was put aside, and else the batch ends.
    """

    def __init__(self, give_up_s: float, patience_s: float) -> None:
        self._give_up_s, self._patience_s = give_up_s, patience_s
        self._lines = deque[Put]()
        self._others_made_at = self._late_made_at = -inf
        self._in_a_row = 0

    def put(self, line: Line, now: float) -> None:
        """Its first refusal. It is asked for again as soon as the others are through."""
        self._in_a_row += 1
        self._lines.append(Put(line, now, now))

    def back(self, put: Put, now: float, retry_after_s: float) -> None:
        """One more refusal; it goes behind all others."""
        self._in_a_row += 1
        give_up_at = put.since + self._give_up_s
        due = now + retry_after_s
        self._lines.append(replace(put, due=min(due, give_up_at) if give_up_at > now else due))

    def take(self) -> Put | None:
        return self._lines.popleft() if self._lines else None

    def other_made(self, now: float) -> None:
        """An image of a line that was never put aside."""
        self._others_made_at, self._in_a_row = now, 0

    def late_made(self, now: float) -> None:
        """An image of one that was."""
        self._late_made_at, self._in_a_row = now, 0

    def pause_s(self, retry_after_s: float) -> float:
        """Before whoever was refused asks for another line."""
        return retry_after_s if self._in_a_row >= IN_A_ROW else 0.0

    def given_up(self, put: Put, asked_at: float, why: NotNowError, under_way: int) -> bool:
        """Whether the line, refused when it was asked for at `asked_at`, has failed. While other lines are `under_way`
        nothing else has run out: their jobs may wait for hours. Raises BatchError where the batch has."""
        if asked_at >= put.since + self._give_up_s and self._others_made_at >= put.since:
            return True
        made_at = max(self._others_made_at, self._late_made_at)
        waited_s = asked_at - max(put.since, made_at)
        if under_way or waited_s < self._patience_s:
            return False
        if made_at >= put.since:
            return True
        raise BatchError(f"no line could be made for {waited_s:.0f} s; last: line {put.line.number}: {why}") from why
