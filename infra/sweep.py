"""`letterpress sweep`: what a cloud has in a stack's name and no state knows; deleted where somebody says so."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from infra.deployment import stack_name
from infra.engine import EngineSettings, operate
from infra.errors import InfraError
from infra.paths import StackPaths
from infra.provider.site import Site
from infra.state.safekeeping import Safekeeping
from infra.strays import Stray, StraysError, give_back, strays, unasked
from infra.view.console import ask, say


def sweep(stack: str, delete: Sequence[str], *, every: bool) -> None:
    """List the strays; delete those of them that `delete` names, or `every` one, or, if nothing is named, all that a
    person at a terminal says yes to.

    Both looks are under the stack's lock, the question is not: what was shown is deleted if it is a stray still.
    """
    name = stack_name(stack)
    paths = StackPaths.of(name)
    if not paths.root.is_dir():
        raise StraysError(f"stack {name} was never deployed from this checkout, so its id is not known here")
    settings = Safekeeping.remembered(paths).settings
    with _looking(name, paths, settings) as shown:
        pass
    if unknown := set(delete) - {stray.name for stray in shown}:
        raise StraysError(f"stack {name}: {', '.join(sorted(unknown))}: no stray of that name; see `sweep {name}`")
    if not shown:
        say(f"Stack {name}: the clouds that were asked have nothing in its name that its state does not know.")
    for line in unasked(paths):
        say(line)
    chosen = _chosen(shown, delete, every=every)
    if not chosen:
        return
    with _looking(name, paths, settings) as found:
        failures = _delete(paths, chosen, found)
    if failures:
        raise StraysError("\n".join(failures))


@contextmanager
def _looking(name: str, paths: StackPaths, settings: EngineSettings) -> Iterator[tuple[Stray, ...]]:
    """The strays of now; they stay so while the block holds the stack."""
    with operate(name, paths, (), settings, f"sweep {name}") as engine:
        known = frozenset(each.rented for each in engine.state().resources if each.rented)
        yield asyncio.run(strays(paths, known))


def _chosen(shown: Sequence[Stray], delete: Sequence[str], *, every: bool) -> Sequence[Stray]:
    """Those that are to go; asks where there is somebody to be asked."""
    chosen = [stray for stray in shown if every or stray.name in delete]
    for stray in shown:
        hint = "" if stray in chosen else f"; --delete {stray.name} deletes it"
        say(f"  {_told(stray)}  not in the state{hint}")
    if shown and not chosen and sys.stdin.isatty() and ask("Delete them?"):
        return shown
    return chosen


def _delete(paths: StackPaths, chosen: Sequence[Stray], found: Sequence[Stray]) -> list[str]:
    """Give back those that are chosen, if they are `found` still; what kept others from it."""
    site, failures = Site(paths, os.environ), []
    there = {(stray.cloud, stray.name, stray.machine_id) for stray in found}
    for stray in chosen:
        if (stray.cloud, stray.name, stray.machine_id) not in there:
            say(f"  {_told(stray)}  left alone: it is no stray any more")
            continue
        try:
            asyncio.run(give_back(site, stray))
            say(f"  {_told(stray)}  deleted")
        except InfraError as error:
            failures.append(str(error))
    return failures


def _told(stray: Stray) -> str:
    since = f", since {stray.since:%Y-%m-%d %H:%M} UTC" if stray.since else ""
    price = f", ${stray.price:.2f}/h" if stray.price else ""
    what = "" if stray.machine_id else ", serverless endpoint with its volume"
    return f"{stray.name}  ({stray.cloud}{what}{price}{since})"
