"""`letterpress sweep`: what a cloud has in a stack's name and no state knows; deleted where that is asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from infra.deployment import stack_name
from infra.engine import operate
from infra.errors import InfraError
from infra.paths import StackPaths
from infra.provider.site import Site
from infra.state.safekeeping import Safekeeping
from infra.strays import StraysError, give_back, strays, unasked
from infra.view.console import say


def sweep(stack: str, delete: Sequence[str], *, every: bool) -> None:
    """List the strays; delete those of them that `delete` names, or all. Under the stack's lock."""
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
        site, failures = Site(paths, os.environ), []
        for stray in found:
            since = f", since {stray.since:%Y-%m-%d %H:%M} UTC" if stray.since else ""
            price = f", ${stray.price:.2f}/h" if stray.price else ""
            what = "" if stray.machine_id else ", serverless endpoint with its volume"
            told = f"  {stray.name}  ({stray.cloud}{what}{price}{since})"
            if not every and stray.name not in delete:
                say(f"{told}  not in the state; --delete {stray.name} deletes it")
                continue
            try:
                asyncio.run(give_back(site, stray))
                say(f"{told}  deleted")
            except InfraError as error:
                failures.append(str(error))
    if failures:
        raise StraysError("\n".join(failures))
