"""What commands print: progress that a person can follow, tables, and the last words of a deploy.

At a terminal what is under way is redrawn in place; into a pipe or a file each change is a line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import Progress as Live
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.costs.charges import Charge
from infra.deployment import Deployment
from infra.endpoint import relative_to
from infra.engine.events import Action, Change, OnProgress, Progress, Stage
from infra.paths import StackPaths
from infra.remains import listed
from infra.view.status import Row


class _Terminal(Console):
    """A console that outlives its reader: `make deploy | head` must not leave a stack half up."""

    def on_broken_pipe(self) -> None:
        """Instead of ending the process: what is printed from here on goes nowhere (`quiet`)."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


OUT = _Terminal(highlight=False, soft_wrap=True)
ERR = _Terminal(stderr=True, highlight=False, soft_wrap=True)

MARKS = {
    Action.CREATE: "[green]+[/]",
    Action.UPDATE: "[yellow]~[/]",
    Action.REPAIR: "[yellow]![/]",
    Action.REPLACE: "[magenta]±[/]",
    Action.DELETE: "[red]-[/]",
}
VERBS = {
    Action.CREATE: ("creating", "created"),
    Action.UPDATE: ("updating", "updated"),
    Action.REPAIR: ("repairing", "repaired"),
    Action.REPLACE: ("replacing", "replaced"),
    Action.DELETE: ("deleting", "deleted"),
}


def say(line: str) -> None:
    """One line of plain text."""
    OUT.print(escape(line))


def fail(message: str) -> None:
    """An error, for a person, on standard error."""
    ERR.print(f"[bold red]error:[/] {escape(message)}")


def show_plan(changes: Sequence[Change]) -> None:
    """What an operation would do, a line for each resource."""
    for change in sorted(changes, key=lambda change: (change.kind, change.resource)):
        because = f"  ({', '.join(change.because)})" if change.because else ""
        OUT.print(f"  {MARKS[change.action]} {change.action:<8} {change.kind:<13} {escape(change.resource + because)}")


def show_charges(charges: Sequence[Charge]) -> None:
    """What the machines cost, a line each, and together."""
    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("machine", "", "GPU", "market", "region", "$/h", "$/image"):
        drawn.add_column(column, justify="right" if column.startswith("$") else "left", no_wrap=True)
    for charge in charges:
        offer = charge.offer
        image = "-" if charge.dollars_per_image is None else f"{charge.dollars_per_image:.4f}"
        gpu = f"{offer.gpus} x {offer.gpu}" if offer.gpus > 1 else offer.gpu
        state = "[green]new[/]" if charge.fresh else ""
        cells = (charge.machine, state, escape(gpu), offer.market, escape(offer.region), f"{offer.price:.2f}", image)
        drawn.add_row(*cells)
    OUT.print(drawn)
    total = sum(charge.offer.price for charge in charges)
    fresh = sum(charge.offer.price for charge in charges if charge.fresh)
    OUT.print(f"Together [bold]${total:.2f} an hour[/], of which ${fresh:.2f} are new.")


def ask(question: str) -> bool:
    """Yes or no, from a person at a terminal; no is what an empty answer means, and none (Ctrl-D)."""
    try:
        return OUT.input(f"{escape(question)} [dim](y/N)[/] ").strip().lower() in {"y", "yes"}
    except EOFError:
        say("")
        return False


def account(counts: Mapping[Action, int]) -> str:
    """`8 created, 1 repaired`."""
    return ", ".join(f"{counts[action]} {done}" for action, (_, done) in VERBS.items() if counts.get(action))


def unheard(_: Progress) -> None:
    """For an operation that nobody needs to follow."""


@contextmanager
def following() -> Iterator[OnProgress]:
    """A listener for an operation's progress, drawn as the output can show it."""
    if not OUT.is_terminal:
        yield _Lines().tell
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Live(*columns, console=OUT, transient=True) as live:
        yield _InPlace(live).tell


class _Lines:
    """A line for each beginning, each new stage and each end."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def tell(self, progress: Progress) -> None:
        if progress.action in VERBS and self._last.get(progress.resource) != (line := _line(progress)):
            self._last[progress.resource] = line
            OUT.print(f"{line}{_seconds(progress)}")


class _InPlace:
    """What is under way below, what has ended above it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._tasks: dict[str, TaskID] = {}

    def tell(self, progress: Progress) -> None:
        if progress.action not in VERBS:
            return
        if progress.stage in (Stage.BEGUN, Stage.UNDERWAY):
            if progress.resource in self._tasks:
                self._live.update(self._tasks[progress.resource], description=_line(progress).strip())
            else:
                self._tasks[progress.resource] = self._live.add_task(_line(progress).strip(), total=None)
            return
        if task := self._tasks.pop(progress.resource, None):
            self._live.remove_task(task)
        self._live.console.print(f"{_line(progress)}{_seconds(progress)}")


def _line(progress: Progress) -> str:
    doing, done = VERBS[progress.action]
    mark, what = {
        Stage.BEGUN: (MARKS[progress.action], doing),
        Stage.UNDERWAY: (MARKS[progress.action], escape(progress.text)),
        Stage.DONE: ("[green]✓[/]", done),
        Stage.FAILED: ("[red]✗[/]", "failed"),
    }[progress.stage]
    return f"  {mark} {progress.kind:<13} {escape(progress.resource):<28} {what}"


def _seconds(progress: Progress) -> str:
    return "" if progress.stage is Stage.BEGUN else f"  [dim]{progress.seconds:.1f} s[/]"


def show_table(table: Table) -> None:
    """As wide as it is where nobody's terminal ends: nothing is cut, and `grep` finds whole lines."""
    if not OUT.is_terminal:
        OUT.width = Measurement.get(OUT, OUT.options.update(max_width=1000), table).maximum
    OUT.print(table)


def show_status(table: Sequence[Row]) -> None:
    """The table of `make status`."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("resource", "state", "since", "url", "pool", "jobs"):
        drawn.add_column(column, no_wrap=column in ("resource", "url"))
    for row in table:
        colour = "green" if row.good else "red"
        since = _since(row.since) if row.since else "-"
        cells = (row.resource, f"[{colour}]{escape(row.state)}[/]", since, row.url, row.pool, row.jobs)
        drawn.add_row(*cells)
    show_table(drawn)


def _since(moment: datetime) -> str:
    ago = int((datetime.now(UTC) - moment).total_seconds())
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if ago >= 2 * seconds:
            return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({ago // seconds} {unit})"
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({max(ago, 0)} s)"


def show_endpoint(deployment: Deployment) -> None:
    """Where it answers, where the key is, and a call to paste."""
    cwd = Path(os.environ.get("PWD") or Path.cwd())
    endpoint = deployment.endpoint
    OUT.print(f"  Endpoint  [bold]{endpoint.url}[/]")
    OUT.print(f"  API key   {escape(str(relative_to(endpoint.api_key_file, cwd)))}")
    router = deployment.description.router.host
    opened = f" on {router.address}; `make admin` opens a tunnel to it" if router else ""
    OUT.print(f"  Admin     {endpoint.admin_url}{opened}")
    if deployment.tiny:
        OUT.print("  Weights   tiny and random: pictures are noise. README.md says how to serve real ones.")
    if pool := deployment.pool_in_use:
        OUT.print("\nTry it:\n")
        OUT.print(escape(endpoint.example(cwd, pool)))


def show_remains(paths: StackPaths) -> None:
    """What is left of the stack on machines that did not answer when it went."""
    for kept in listed(paths):
        for line in kept.lines:
            OUT.print(escape(line))
