"""What `deploy`, `preview`, `destroy` and `admin` do, in order, and what they tell the person who waits.

The order is the point here: tools, description, placement, preview, resources, first image. Each step's
work is another module's.
"""

from __future__ import annotations

import asyncio
import time

from infra.console import account, following, say, show_endpoint, show_plan, unheard
from infra.deployment import Deployment, forget, stack_name
from infra.endpoint import Endpoint
from infra.engine import EngineSettings, operate
from infra.errors import InfraError
from infra.paths import StackPaths
from infra.planner import plan as decide
from infra.setup.engine import ensure_engine
from infra.setup.nginx import ensure_nginx
from infra.strays import end_strays
from router.client import AdminClient, RouterClient, RouterClientError
from router.contract import JobRequest

FIRST_IMAGE_WITHIN_S = 300.0
"""One step at the smallest size, on workers that said they are ready; other jobs may wait before it."""
FIRST_IMAGE = JobRequest(prompt="ready", width=256, height=256, steps=1)


class NotServingError(InfraError):
    """Every resource is there, and yet no image comes out."""


def ensure_tools() -> EngineSettings:
    """The Pulumi engine and nginx, installed now if need be."""
    ensure_nginx(say)
    return EngineSettings(binary=ensure_engine(say))


def deploy(stack: str, model: str | None) -> None:
    """Make the world as the stack file says, and prove it with an image."""
    begun = time.monotonic()
    settings = ensure_tools()
    deployment = Deployment.described(stack, model)
    name = deployment.description.name
    plan = asyncio.run(decide(deployment.description, deployment.paths))
    with operate(name, deployment.paths, plan.declared, settings, f"deploy {name}") as engine:
        say(f"Looking at stack {name}")
        wanted = engine.preview(unheard)
        ended = f"Nothing to change: stack {name} runs as described"
        if wanted.changes:
            say(f"Stack {name} will change:")
            show_plan(wanted.changes)
            plan.keep(deployment.paths)
            deployment.remember()
            say("Bringing it up:")
            with following() as tell:
                ended = f"Stack {name} is up: {account(engine.up(tell).counts)}"
        if not deployment.proved and (pool := deployment.pool_in_use):
            asyncio.run(_first_image(deployment.endpoint, pool))
            deployment.prove()
    say(f"{ended} ({time.monotonic() - begun:.1f} s).")
    show_endpoint(deployment)


def preview(stack: str, model: str | None) -> None:
    """Show what a deploy would change, and write nothing down."""
    settings = ensure_tools()
    deployment = Deployment.described(stack, model)
    name = deployment.description.name
    plan = asyncio.run(decide(deployment.description, deployment.paths))
    with operate(name, deployment.paths, plan.declared, settings, f"preview {name}") as engine:
        wanted = engine.preview(unheard)
    if wanted.changes:
        say(f"Stack {name} would change:")
        show_plan(wanted.changes)
        say("Nothing was changed; `make deploy` does it.")
    else:
        say(f"Nothing to change: stack {name} runs as described.")


def destroy(stack: str) -> None:
    """End everything that the state holds, or, if it was lost, what runs in the stack's name. Needs no stack file."""
    begun = time.monotonic()
    name = stack_name(stack)
    paths = StackPaths.of(name)
    if not paths.root.is_dir():
        say(f"Nothing to destroy: stack {name} was never deployed from this checkout.")
        return
    with operate(name, paths, (), EngineSettings(binary=ensure_engine(say)), f"destroy {name}") as engine:
        if not engine.state().resources:
            strays = asyncio.run(end_strays(paths))
            forget(paths)
            found = f"its state is empty, and yet these ran in its name, and are ended: {', '.join(strays)}"
            say(f"Stack {name} is gone: {found}." if strays else f"Nothing to destroy: stack {name} has no resources.")
            return
        with following() as tell:
            done = engine.destroy(tell)
    forget(paths)
    say(f"Stack {name} is gone ({account(done.counts)}; {time.monotonic() - begun:.1f} s).")
    say(f"Its keys, logs and the router's data stay in {paths.root}; remove that folder to forget it.")


def admin(stack: str) -> None:
    """On this computer the admin app is reached directly; a router elsewhere will want a forward first."""
    endpoint = Deployment.remembered(stack).endpoint
    try:
        asyncio.run(_answers(endpoint))
    except (RouterClientError, TimeoutError) as error:
        raise NotServingError(f"the admin app does not answer: {error}. `make status`, then `make deploy`") from None
    say(f"Admin console   {endpoint.admin_url}")
    say(f"Metrics         {endpoint.admin_url}/metrics")
    say(f"Admin key       {endpoint.admin_key_file} (only changes want it)")


async def _answers(endpoint: Endpoint) -> None:
    async with asyncio.timeout(5), AdminClient(endpoint.admin_url) as client:
        await client.health()


async def _first_image(endpoint: Endpoint, pool: str) -> None:
    """One image by the way that users take: edge, router, a worker of `pool`, and back."""
    begun = time.monotonic()
    try:
        async with (
            asyncio.timeout(FIRST_IMAGE_WITHIN_S),
            RouterClient(endpoint.url, endpoint.api_key_file.read_text().strip()) as client,
        ):
            await client.generate(FIRST_IMAGE.model_copy(update={"pool": pool}))
    except TimeoutError:
        raise NotServingError(
            f"all is up, but no image was made within {FIRST_IMAGE_WITHIN_S:g} s; `make status` shows who is busy"
        ) from None
    except RouterClientError as error:
        raise NotServingError(f"all is up, but the first image failed: {error}; `make logs` shows why") from error
    say(f"First image made in {time.monotonic() - begun:.1f} s.")
