"""What a person sees of a batch: a bar at a terminal, a line now and then elsewhere. All of it on standard error."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from router.client.batch.index import NAME
from router.client.batch.settings import Outcome
from router.client.batch.tally import Tally

LINE_EVERY_S = 30.0
"""Where there is no terminal: a log wants to know that it goes on, not each image."""
WIDTH = 160
BAD_SHOWN = 50
"""Lines without an image that are named on the screen; the index has them all."""


class Drawn:
    """A `run.Watcher`."""

    def __init__(self, out: Path) -> None:
        self._out = out
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._console = console if console.is_terminal else Console(stderr=True, highlight=False, width=WIDTH)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._tally = Tally()
        self._why = ""
        self._bad = 0
        self._aside = 0
        self._said_at = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def checking(self, done: int, total: int) -> None:
        task = self._draw("checking", total, done, f"{done} of {total} files of earlier runs")
        if done == total:
            self._bar.remove_task(task)
            self._task = None

    def begins(self, tally: Tally) -> None:
        self._tally = tally
        if tally.done_before:
            self._say(f"{tally.done_before} of {tally.total} images are here already")
        self._said_at = time.monotonic()
        self.moved()

    def moved(self) -> None:
        now = time.monotonic()
        told = words(self._tally, now) + (f"  {self._why}" if self._why else "")
        self._draw("images", self._tally.total, self._tally.finished, told)
        if not self._console.is_terminal and now - self._said_at >= LINE_EVERY_S:
            self._said_at = now
            self._say(told)

    def bad(self, line: int, why: str) -> None:
        self._bad += 1
        if self._bad <= BAD_SHOWN:
            self._say(f"line {line}: {why}")
        elif self._bad == BAD_SHOWN + 1:
            self._say(f"... more of them: {self._out / NAME} has them all")

    def aside(self, line: int, why: str) -> None:
        self._aside += 1
        if self._aside <= BAD_SHOWN:
            self._say(f"line {line} is put aside: {why}; asked for again after the others")

    def waits(self, why: str) -> None:
        if why != self._why and why and not self._console.is_terminal:
            self._say(f"waiting: {why}")
        self._why = f"waiting: {why}" if why else ""
        self.moved()

    def ends(self, outcome: Outcome) -> None:
        """The last words, after the bar is gone."""
        for line in account(outcome.tally, self._out):
            self._say(line)

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False)

    def _draw(self, doing: str, total: int, done: int, told: str) -> TaskID:
        if self._task is None:
            self._task = self._bar.add_task(doing, total=total, completed=done, told=told)
        self._bar.update(self._task, total=total, completed=done, told=told)
        return self._task


def words(tally: Tally, now: float) -> str:
    """`812/2000  31.2 a minute  cost $1.20  38 min left`."""
    rate, left = tally.rate(now), tally.seconds_left(now)
    parts = [
        f"{tally.finished}/{tally.total}",
        f"{60 * rate:.1f} a minute" if rate else "no image yet" if tally.left else "",
        f"{tally.failed + tally.invalid} without image" if tally.failed + tally.invalid else "",
        f"cost {dollars(tally)}",
        f"{span(left)} left" if left else "",
    ]
    return "  ".join(part for part in parts if part)


def account(tally: Tally, out: Path) -> list[str]:
    said = (
        f"{tally.finished} of {tally.total} lines have their image in {out}; {tally.done} made now, "
        f"{tally.gpu_s / 3600:.2f} GPU hours in all, cost {dollars(tally)}"
    )
    lines = [said]
    if tally.left_for_later:
        lines.append(f"{tally.left_for_later} are left for the next run (--limit)")
    if tally.unsafe:
        lines.append(f"{tally.unsafe} of those made now look refused by the weights: is_image_safe in their .json")
    if tally.invalid:
        lines.append(f"{tally.invalid} cannot be asked for as they are; put them right and run it again")
    if tally.failed:
        lines.append(f"{tally.failed} failed, {out / NAME} says why; --retry-failed tries them again")
    return lines


def dollars(tally: Tally) -> str:
    return "unknown (--price)" if tally.cost is None else f"${tally.cost:.2f}"


def span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
