"""What `deploy`, `preview` and `destroy` do, in order, and what they tell the person who waits.

The order is the point here: tools, description, placement, preview, resources, first image. Each step's
work is another module's.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Sequence

from infra.costs.charges import Charge
from infra.deployment import Deployment, forget, stack_name
from infra.endpoint import Endpoint
from infra.engine import OnFailure, OperationFailedError, operate
from infra.engine.events import Action
from infra.errors import InfraError
from infra.paths import StackPaths
from infra.planning.placement import Placement
from infra.planning.planner import Plan
from infra.planning.planner import plan as decide
from infra.provider.site import NO_WAIT
from infra.setup.engine import ensure_engine
from infra.setup.nginx import ensure_nginx
from infra.state.safekeeping import Safekeeping
from infra.strays import StraysError, end_strays, rented, unasked
from infra.view.console import (
    account,
    ask,
    following,
    say,
    show_charges,
    show_endpoint,
    show_plan,
    show_remains,
    unheard,
)
from infra.watch.unit import remove as remove_watch
from router.client import RouterClient, RouterClientError
from router.contract import JobRequest

FIRST_IMAGE_WITHIN_S = 300.0
"""One step at the smallest size, on workers that said they are ready; other jobs may wait before it."""
FIRST_IMAGE = JobRequest(prompt="ready", width=256, height=256, steps=1)


ROUNDS = 5
"""So often may offers turn out to be sold out before a deploy gives up."""


class SpendingError(InfraError):
    """Nobody agreed to what it would cost."""


class NotServingError(InfraError):
    """Every resource is there, and yet no image comes out."""


def ensure_tools(*, edge: bool = True) -> None:
    """The Pulumi engine and, for an `edge` on this computer, nginx; installed now if need be."""
    if edge:
        ensure_nginx(say)
    ensure_engine(say)


def deploy(stack: str, model: str | None, *, yes: bool = False) -> None:
    """Make the world as the stack file says, and prove it with an image. `yes`: it may spend money unasked."""
    begun = time.monotonic()
    deployment = Deployment.described(stack, model)
    ensure_tools(edge=deployment.description.router.host is None)
    keeping = Safekeeping.described(deployment)
    keeping.catch_up()
    plan = asyncio.run(decide(deployment.description, deployment.paths))
    agreed, rounds, ended = 0.0, 0, ""
    while not ended:
        rounds += 1
        agreed = _agree(plan.charges, agreed, yes=yes)
        try:
            ended = _bring_up(deployment, plan, keeping)
        except OperationFailedError as error:
            again = asyncio.run(decide(deployment.description, deployment.paths))
            if again.placement == plan.placement or rounds == ROUNDS:
                raise
            say(str(error))
            for line in moves(plan.placement, again.placement):
                say(line)
            plan = again
    keeping.keep_up()
    say(f"{ended} ({time.monotonic() - begun:.1f} s).")
    show_endpoint(deployment)
    show_remains(deployment.paths)


def _bring_up(deployment: Deployment, plan: Plan, keeping: Safekeeping) -> str:
    """Preview, up, first image; what came of it in a sentence."""
    name = deployment.description.name
    with operate(name, deployment.paths, plan.declared, keeping.settings, f"deploy {name}") as engine:
        say(f"Looking at stack {name}")
        wanted = engine.preview(unheard)
        ended = f"Nothing to change: stack {name} runs as described"
        if wanted.changes:
            say(f"Stack {name} will change:")
            show_plan(wanted.changes)
            plan.keep(deployment.paths)
            made = sum(change.action is Action.CREATE for change in wanted.changes)
            deployment.remember(exists=made < len(plan.declared))
            keeping.begin()
            say("Bringing it up:")
            with following() as tell:
                ended = f"Stack {name} is up: {account(engine.up(tell, _on_failure(deployment)).counts)}"
        else:
            keeping.settle()
            kept = Deployment.kept(deployment.paths)
            if kept is None or kept.description != deployment.description:
                # Another operator has brought it about, or what changed is watch's alone: its budget, its time.
                deployment.remember()
        if not deployment.proved and (pool := deployment.pool_in_use):
            asyncio.run(_first_image(deployment.endpoint, pool))
            deployment.prove()
    return ended


def _on_failure(deployment: Deployment) -> OnFailure:
    """One machine's fault is nobody else's. Where machines are rented another offer is taken for it, and soon."""
    return OnFailure.STOP if deployment.description.rented else OnFailure.GO_ON


def _agree(charges: Sequence[Charge], agreed: float, *, yes: bool) -> float:
    """The dollars an hour that are agreed upon. Raises SpendingError unless somebody says yes to what is new."""
    total = sum(charge.offer.price for charge in charges)
    if not any(charge.fresh for charge in charges) or total <= agreed:
        return agreed
    show_charges(charges)
    if yes:
        return total
    rented = [charge for charge in charges if not charge.fresh]
    stay = f"{len(rented)} rented before stay, and are paid for; `make destroy` gives them back"
    left = f"Nothing more was rented ({stay})" if rented else "Nothing was rented"
    if not sys.stdin.isatty():
        raise SpendingError(
            f"this rents machines for ${total:.2f} an hour in all, and nobody is here to be asked; say --yes (YES=1 "
            f"with make) if that is meant. {left}"
        )
    if not ask("Rent them?"):
        raise SpendingError(left)
    return total


def moves(before: Placement, after: Placement) -> Iterator[str]:
    """What became of machines whose offers turned out to be sold out, or dearer, a line each."""
    for placed in after.machines:
        old = before.of(placed.machine)
        if old is None or old.offer == placed.offer:
            continue
        new = placed.offer
        if old.offer.id == new.id:
            yield f"{placed.machine}: {new.gpu} ({new.market}) costs ${new.price:.2f}/h, and not ${old.offer.price:.2f}"
        else:
            yield (
                f"{placed.machine}: takes {new.gpu} ({new.market}) in {new.region} at ${new.price:.2f}/h instead of "
                f"{old.offer.gpu} ({old.offer.market}) in {old.offer.region}"
            )


def preview(stack: str, model: str | None) -> None:
    """Show what a deploy would change, and write nothing down."""
    deployment = Deployment.described(stack, model)
    ensure_tools(edge=deployment.description.router.host is None)
    keeping = Safekeeping.described(deployment)
    keeping.catch_up()
    name = deployment.description.name
    plan = asyncio.run(decide(deployment.description, deployment.paths))
    with operate(name, deployment.paths, plan.declared, keeping.settings, f"preview {name}") as engine:
        wanted = engine.preview(unheard)
    if wanted.changes:
        say(f"Stack {name} would change:")
        show_plan(wanted.changes)
        say("Nothing was changed; `make deploy` does it.")
    else:
        say(f"Nothing to change: stack {name} runs as described.")
    if plan.charges:
        show_charges(plan.charges)


def destroy(stack: str, *, waits: bool = True) -> None:
    """End everything that the state holds, or, if it was lost, what runs in the stack's name. Needs no stack file.

    `waits` for machines that their cloud does not take back yet; otherwise it fails with the hour and the cost.
    """
    begun = time.monotonic()
    name = stack_name(stack)
    if not waits:
        os.environ[NO_WAIT] = "1"  # read by the provider, which the engine starts
    paths = StackPaths.of(name)
    if not paths.root.is_dir():
        say(f"Nothing to destroy: stack {name} was never deployed from this checkout.")
        return
    keeping = Safekeeping.remembered(paths)
    keeping.catch_up()
    with operate(name, paths, (), keeping.settings, f"destroy {name}") as engine:
        if not engine.state().resources:
            strays = asyncio.run(end_strays(paths))
            forget(paths)
            remove_watch(name, paths)
            for line in unasked(paths):
                say(line)
            found = f"its state is empty, and yet these ran in its name, and are ended: {', '.join(strays)}"
            say(f"Stack {name} is gone: {found}." if strays else f"Nothing to destroy: stack {name} has no resources.")
            show_remains(paths)
            return
        with following() as tell:
            done = engine.destroy(tell)
        left = asyncio.run(rented(paths))
        elsewhere = _router_elsewhere(paths)
        # Before anybody else may change the stack: a watch must not take what is gone for lost.
        forget(paths)
    if left:
        listed = ", ".join(stray.name for stray in left)
        raise StraysError(
            f"stack {name}: its state is empty, and its cloud still has {listed}; `letterpress sweep {name}` shows "
            "and deletes them"
        )
    say(f"Stack {name} is gone ({account(done.counts)}; {time.monotonic() - begun:.1f} s).")
    if remove_watch(name, paths):
        say("Systemd watches it no more.")
    kept = "Its keys and logs stay" if elsewhere else "Its keys, logs and the router's data stay"
    say(f"{kept} in {paths.root}; remove that folder to forget it.")
    show_remains(paths)


def _router_elsewhere(paths: StackPaths) -> bool:
    """Whether the router, and its data with it, was on a machine of its own."""
    deployment = Deployment.kept(paths)
    return deployment is not None and deployment.description.router.host is not None


async def _first_image(endpoint: Endpoint, pool: str) -> None:
    """One image by the way that users take: edge, router, a worker of `pool`, and back."""
    begun = time.monotonic()
    try:
        async with (
            asyncio.timeout(FIRST_IMAGE_WITHIN_S),
            RouterClient(endpoint.near, endpoint.api_key_file.read_text().strip(), endpoint.transport) as client,
        ):
            await client.generate(FIRST_IMAGE.model_copy(update={"pool": pool}))
    except TimeoutError:
        raise NotServingError(
            f"all is up, but no image was made within {FIRST_IMAGE_WITHIN_S:g} s; `make status` shows who is busy"
        ) from None
    except RouterClientError as error:
        raise NotServingError(f"all is up, but the first image failed: {error}; `make logs` shows why") from error
    say(f"First image made in {time.monotonic() - begun:.1f} s.")
