"""`letterpress sweep`: what a cloud has in a stack's name and no state knows; deleted where somebody says so."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from infra.deployment import stack_name
from infra.engine import operate
from infra.errors import InfraError
from infra.paths import StackPaths
from infra.provider.site import Site
from infra.state.safekeeping import Safekeeping
from infra.strays import Stray, StraysError, give_back, strays, unasked
from infra.view.console import ask, say


def sweep(stack: str, delete: Sequence[str], *, every: bool) -> None:
    """List the strays; delete those of them that `delete` names, or `every` one, or, if nothing is named, all that a
    person at a terminal says yes to. Under the stack's lock."""
    name = stack_name(stack)
    paths = StackPaths.of(name)
    if not paths.root.is_dir():
        raise StraysError(f"stack {name} was never deployed from this checkout, so its id is not known here")
    with operate(name, paths, (), Safekeeping.remembered(paths).settings, f"sweep {name}") as engine:
        known = frozenset(each.rented for each in engine.state().resources if each.rented)
        found = asyncio.run(strays(paths, known))
        if unknown := set(delete) - {stray.name for stray in found}:
            raise StraysError(f"stack {name}: {', '.join(sorted(unknown))}: no stray of that name; see `sweep {name}`")
        if not found:
            say(f"Stack {name}: the clouds that were asked have nothing in its name that its state does not know.")
        for line in unasked(paths):
            say(line)
        failures = _delete(paths, found, _chosen(found, delete, every=every))
    if failures:
        raise StraysError("\n".join(failures))


def _chosen(found: Sequence[Stray], delete: Sequence[str], *, every: bool) -> frozenset[str]:
    """The names of those that are to go; asks where there is somebody to be asked."""
    names = frozenset(stray.name for stray in found)
    chosen = names if every else frozenset(delete)
    for stray in found:
        hint = "" if stray.name in chosen else f"; --delete {stray.name} deletes it"
        say(f"  {_told(stray)}  not in the state{hint}")
    if found and not chosen and sys.stdin.isatty() and ask("Delete them?"):
        return names
    return chosen


def _delete(paths: StackPaths, found: Sequence[Stray], chosen: frozenset[str]) -> list[str]:
    """Give back those that are chosen; what kept others from it."""
    site, failures = Site(paths, os.environ), []
    for stray in found:
        if stray.name in chosen:
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
