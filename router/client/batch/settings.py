"""What a run of a batch is told, whom it tells what becomes of the lines, and what it says at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from router.client.batch.aside import PATIENCE_S, UNMAKEABLE_S
from router.client.batch.lines import Defaults
from router.client.batch.tally import Tally


@dataclass(frozen=True, slots=True)
class Settings:
    """`pool` is where lines go that name none, if the batch names none either: this run's own choice, since a batch
    may begin at a worker and go on at a router. `limit` bounds the images of this run; `quick` believes files by their
    size; `redo_changed` makes lines anew that were edited after their image was made. A line that no worker can make is
    asked for again when the others are through, and given up `unmakeable_s` seconds after its first refusal if others
    were made since; if none was, it waits for `patience_s` (`router.client.batch.aside`)."""

    source: Path
    out: Path
    defaults: Defaults = Defaults()  # noqa: RUF009 - frozen
    pool: str | None = None
    concurrency: int = 32
    limit: int | None = None
    retry_failed: bool = False
    redo_changed: bool = False
    quick: bool = False
    price: float | None = None
    unmakeable_s: float = UNMAKEABLE_S
    patience_s: float = PATIENCE_S


class Watcher(Protocol):
    """Who is told of it, at the moment that it is so."""

    def checking(self, done: int, total: int) -> None:
        """Files of earlier runs, of which this many have been read."""
        ...

    def begins(self, tally: Tally) -> None: ...

    def moved(self) -> None:
        """The tally has changed."""
        ...

    def bad(self, line: int, why: str) -> None:
        """No image will come of this line, and why."""
        ...

    def aside(self, line: int, why: str) -> None:
        """Nobody can make this line now; it is asked for again after the others."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """`whole` if every line has its image."""

    tally: Tally

    @property
    def whole(self) -> bool:
        return not (self.tally.failed or self.tally.invalid)
