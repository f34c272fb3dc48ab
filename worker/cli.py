"""The worker's verbs of the `letterpress` command: `weights pull | check | list`.

A few lines for each over its module. What is slow to import (the hub's client) is imported by the verb that
needs it, because the command reads this module to know its verbs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from worker.settings import PREFIX, default_cache_dir

if TYPE_CHECKING:
    from worker.weights.cache import Found
    from worker.weights.hub import Listing
    from worker.weights.licences import Acceptance

weights = typer.Typer(no_args_is_help=True, help="Weights on this machine.")

WIDTH = 160
"""Characters of a line that goes into a pipe or a file."""
OUT = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)
INTERRUPTED = 130
"""Exit status of a command that was ended by Ctrl-C, as shells have it."""

Repository = Annotated[str, typer.Argument(metavar="REPOSITORY", help="OWNER/NAME, as on the hub.")]


@weights.command()
def pull(
    repository: Repository = "",
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You have read the repository's licence, and accept it.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read what is here already, too, and mend it.")] = False,
) -> None:
    """Download a repository, or the rest of it, and check its bytes."""
    with _told():
        from worker.weights import cache
        from worker.weights.catalogue import DEFAULT
        from worker.weights.licences import Way
        from worker.weights.pull import pull as run

        wanted = _named(repository or DEFAULT)
        with _Drawn() as drawn:
            pulled = run(wanted, _records(), drawn, accept=Way.COMMAND if accept_license else None, verify=verify)
        fetched = f"{pulled.fetched / 1e9:.2f} GB fetched" if pulled.fetched else "everything was here"
        OUT.print(f"{wanted} is whole: {pulled.listing.bytes / 1e9:.2f} GB, {fetched}", markup=False)
        OUT.print(str(cache.storage(cache.caches()[0], wanted) / "snapshots" / pulled.listing.commit), markup=False)


@weights.command()
def check(
    repository: Repository = "",
    quick: Annotated[bool, typer.Option("--quick", help="Look only whether every file is there.")] = False,
) -> None:
    """Look whether a repository is whole, and read all its bytes; without a name, every one that is here."""
    with _told():
        from worker.weights import cache
        from worker.weights.hub import WeightsError

        if repository:
            found = cache.find(_named(repository))
            if found is None:
                raise WeightsError(f"{repository} is not on this machine; `letterpress weights pull {repository}`")
            everything = [found]
        else:
            everything = list(cache.every())
        wrong = [found.repository for found in everything if not _sound(found, quick=quick)]
        if not everything:
            OUT.print("no weights are on this machine; `letterpress weights pull` fetches the usual ones")
        if wrong:
            raise WeightsError(
                f"not whole: {', '.join(wrong)}; `letterpress weights pull {wrong[0]} --verify` mends it"
            )


@weights.command("list")
def show() -> None:
    """What lies here, and which repositories Letterpress knows."""
    with _told():
        from worker.weights import cache, licences
        from worker.weights.catalogue import KNOWN

        here = {found.repository: found for found in cache.every()}
        notes = {known.repository: known.note for known in KNOWN}
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("repository", "here", "size", "licence accepted", "what it is"):
            table.add_column(heading, no_wrap=True)
        for name in sorted({*here, *notes}):
            found, yes = here.get(name), licences.accepted(_records(), name)
            table.add_row(
                name,
                "no" if found is None else "whole" if found.whole else "in part",
                f"{found.bytes / 1e9:.2f} GB" if found else "",
                f"{yes.at:%Y-%m-%d} by {yes.user}" if yes else "",
                notes.get(name, ""),
            )
        OUT.print(table)
        OUT.print(f"in {', '.join(str(folder) for folder in cache.caches())}", markup=False)


def _sound(found: Found, *, quick: bool) -> bool:
    from worker.weights import cache

    wrong = [f"{name} is missing" for name in found.missing]
    if not quick:
        with _Drawn() as drawn:
            drawn.total(f"checking {found.repository}", found.bytes)
            wrong += [f"{name} is damaged" for name in cache.damaged(found.folder, drawn.advanced)]
    for line in wrong:
        OUT.print(f"{found.repository}: {line}", markup=False)
    if not wrong:
        read = "every file is there" if quick else "every file is there and has its digest"
        OUT.print(f"{found.repository} is whole: {read} ({found.bytes / 1e9:.2f} GB, {found.commit})", markup=False)
    return not wrong


def _named(repository: str) -> str:
    from worker.weights.hub import WeightsError

    owner, slash, name = repository.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise WeightsError(f"{repository!r} names no repository; they are written OWNER/NAME, as on the hub")
    return repository


def _records() -> Path:
    return Path(os.environ.get(f"{PREFIX}CACHE_DIR") or default_cache_dir())


@contextmanager
def _told() -> Iterator[None]:
    """Errors that are for people end the command with one message and status 1."""
    # The client's own bars and warnings would stand between ours; it reads this when it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    from worker.engine import LoadError

    try:
        yield
    except LoadError as error:
        ERR.print(f"[bold red]error:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        ERR.print("stopped; run this again and it goes on where it stopped")
        raise typer.Exit(INTERRUPTED) from None


class _Drawn:
    """A progress bar at a terminal; elsewhere a line for each tenth. Stands in for `worker.weights.pull.Progress`."""

    def __init__(self) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=OUT,
            transient=True,
            disable=not OUT.is_terminal,
        )
        self._task: TaskID | None = None
        self._done = self._total = self._tenths = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def accepted(self, yes: Acceptance) -> None:
        OUT.print(f"licence  {yes.licence or 'its own'}, accepted by {yes.user} on {yes.at:%Y-%m-%d}", markup=False)

    def begins(self, listing: Listing, there: int) -> None:
        self.total(f"downloading {listing.repository}", listing.bytes, there)

    def total(self, doing: str, total: int, done: int = 0) -> None:
        """What is done from here on, in bytes."""
        self._done, self._total, self._tenths = done, total, 10 * done // max(total, 1)
        self._task = self._bar.add_task(doing, total=total, completed=done)
        if not OUT.is_terminal:
            OUT.print(f"{doing}: {done / 1e9:.2f} of {total / 1e9:.2f} GB", markup=False)

    def advanced(self, count: int) -> None:
        with self._lock:
            self._done += count
            tenths = 10 * self._done // max(self._total, 1)
            new, self._tenths = tenths > self._tenths, max(tenths, self._tenths)
        if self._task is not None:
            self._bar.advance(self._task, count)
        if new and not OUT.is_terminal:
            OUT.print(f"  {10 * tenths} %: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB", markup=False)

    def waits(self, why: str) -> None:
        self._bar.console.print(f"  {why}", markup=False)
