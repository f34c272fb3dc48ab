"""The tunnel service of the router's host: which machines it is told of, and that it runs while there are any.

It is a unit of its own, so that a router's restart cuts nothing. Its key lies in its folder on that host, its sockets
in a short run directory. What it does is `router.tunnels`'.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import PurePath

from pydantic import ValidationError

from infra.hosts import Progress, UnitState
from infra.provider.place import LEAVE, RouterPlace
from infra.provider.resource import ProviderError
from infra.provider.router_units import tunnel_unit
from infra.ssh.errors import SshError
from infra.ssh.keys import TUNNEL, ensure_key
from router.contract import TunnelMachine, TunnelMachines, TunnelState, TunnelsView, TunnelView

UNIT = "tunnels"
FOLDER = PurePath("tunnels")
MACHINES = FOLDER / "machines.json"
STATUS = FOLDER / "status.json"
KEY = FOLDER / "key"
UP_WITHIN_S = 60.0
POLL_S = 0.3
TAKES_UP_WITHIN_S = 5.0
"""The service reads what it is told every second. A refusal told sooner may be of what it was told before."""


def program(place: RouterPlace) -> tuple[str, ...]:
    """On a machine of its own the version that was deployed last, by a name that stays the same: a tunnel outlives
    releases."""
    return (str(place.layout.code("current") / "bin" / "python"),) if place.access else (sys.executable,)


async def add(place: RouterPlace, machine: TunnelMachine, progress: Progress) -> None:
    """Have the service keep a tunnel to a machine, and run."""
    async with place.site.tunnels_changing:
        host = place.host()
        before = await _read(place)
        # A worker has one way: whoever had its name before was lost with its machine, and nobody took leave of it.
        known = {each.id: each for each in before.values() if machine.workers.keys().isdisjoint(each.workers)}
        known[machine.id] = machine
        if known != before:
            await _write(place, known)
        key = ensure_key(place.site.paths.secrets, TUNNEL).read_bytes()
        if await host.read(KEY) != key:
            await host.write(KEY, key)
        unit = tunnel_unit(place.layout, program(place))
        await host.ensure(unit, lambda stage: progress(f"tunnel service: {stage}"))


async def remove(place: RouterPlace, machine_id: str, progress: Progress) -> None:
    """Have it keep that one no more; without any machine it ends. A router's host that does not answer keeps it."""
    await _leave_out(place, lambda known: {name: each for name, each in known.items() if name != machine_id}, progress)


async def close_way(place: RouterPlace, worker: str, progress: Progress) -> None:
    """As `remove`, for the way to a worker that is no more: nobody takes leave of a machine that was lost.

    A way that is open leads to a machine that is there, and goes with it: or a destroy that is broken off between the
    two would leave a worker that no later deploy finds the way to.
    """
    try:
        found = _of(await view(replace(place, patience=LEAVE)), worker)
    except SshError as error:
        progress(f"the router's host was not told: {error}")
        return
    if _is_open(found, worker):
        return
    await _leave_out(place, lambda known: without_worker(known, worker), progress)


def without_worker(known: Mapping[str, TunnelMachine], worker: str) -> dict[str, TunnelMachine]:
    """The machines that have another worker than that one, each with those."""
    left = {name: {one: port for one, port in each.workers.items() if one != worker} for name, each in known.items()}
    return {name: each.model_copy(update={"workers": left[name]}) for name, each in known.items() if left[name]}


async def told_of(place: RouterPlace, machine_id: str) -> TunnelMachine | None:
    """What the service was told of a machine last. Raises SshError if the router's host does not answer."""
    try:
        return (await _read(place)).get(machine_id)
    except ProviderError:  # what is written there is nobody's: `add` says what to do
        return None


async def stopped(place: RouterPlace) -> bool:
    """Whether the service does not run: `add` starts it. Raises SshError if the router's host does not answer."""
    return (await place.host().observe(UNIT)).state in (UnitState.STOPPED, UnitState.ORPHANED)


async def _leave_out(
    place: RouterPlace, change: Callable[[Mapping[str, TunnelMachine]], dict[str, TunnelMachine]], progress: Progress
) -> None:
    place = replace(place, patience=LEAVE)
    async with place.site.tunnels_changing:
        try:
            before = await _read(place)
            known = change(before)
            if known != before:
                await _write(place, known)
            if not known:
                await place.host().remove(UNIT, progress)
        except (SshError, ProviderError) as error:
            progress(f"the router's host was not told: {error}")


async def end(place: RouterPlace, progress: Progress) -> None:
    """With the router: no service, and no machine that it would be told of again."""
    async with place.site.tunnels_changing:
        if await place.host().read(MACHINES):  # first: or a service that has ended is begun again for what stands there
            await _write(place, {})
        await place.host().remove(UNIT, progress)


async def until_up(place: RouterPlace, worker: str, progress: Progress) -> None:
    """Return when the way to a worker is open. Raises ProviderError with the service's own reason if it stays shut."""
    found: TunnelView | None = None
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        async with asyncio.timeout(UP_WITHIN_S):
            while True:
                found = _of(await view(place), worker)
                if _is_open(found, worker):
                    return
                if found and found.state is TunnelState.REFUSED and clock() - begun >= TAKES_UP_WITHIN_S:
                    break
                progress(f"waiting for the tunnel{f': {found.reason}' if found and found.reason else ''}")
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        pass
    reason = found.reason if found else "the tunnel service does not say anything of it"
    raise ProviderError(
        f"{worker} cannot be reached from the router's host: {reason}. `letterpress tunnels` shows them all; "
        "deploy again when that is mended"
    )


async def view(place: RouterPlace) -> TunnelsView:
    """What the service wrote last. On this computer that is nothing if it has been silent: what it wrote before a
    restart of the computer is no news. (Another one's clock may be another.)"""
    content = await place.host().read(STATUS)
    try:
        said = TunnelsView.model_validate_json(content or b"{}")
    except ValidationError:
        return TunnelsView()
    return TunnelsView() if place.access is None and said.silent(datetime.now(UTC)) else said


def _of(said: TunnelsView, worker: str) -> TunnelView | None:
    return next((one for one in said.tunnels if any(way.worker == worker for way in one.forwards)), None)


def _is_open(found: TunnelView | None, worker: str) -> bool:
    return found is not None and any(way.worker == worker and way.up for way in found.forwards)


async def _read(place: RouterPlace) -> dict[str, TunnelMachine]:
    content = await place.host().read(MACHINES)
    try:
        machines = TunnelMachines.model_validate_json(content).machines if content else []
    except ValidationError as error:
        raise ProviderError(f"{MACHINES} cannot be read; remove it and deploy again: {error}") from None
    return {machine.id: machine for machine in machines}


async def _write(place: RouterPlace, machines: dict[str, TunnelMachine]) -> None:
    content = TunnelMachines(machines=list(machines.values())).model_dump_json(indent=2)
    await place.host().write(MACHINES, content.encode() + b"\n")
