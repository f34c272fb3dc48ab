"""The tunnel service of the router's host: which machines it is told of, and that it runs while there are any.

It is a unit of its own, so that a router's restart cuts nothing. Its key lies in its folder on that host, its sockets
in a short run directory. What it does is `router.tunnels`'.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import PurePath

from pydantic import ValidationError

from infra.hosts import Progress, Unit
from infra.provider.resource import ProviderError
from infra.provider.site import Site
from infra.ssh.keys import TUNNEL, ensure_key
from router.contract import TunnelMachine, TunnelMachines, TunnelState, TunnelsView, TunnelView

UNIT = "tunnels"
FOLDER = PurePath("tunnels")
MACHINES = FOLDER / "machines.json"
STATUS = FOLDER / "status.json"
KEY = FOLDER / "key"
UP_WITHIN_S = 60.0
POLL_S = 0.3


def tunnel_unit(site: Site) -> Unit:
    root = site.router_host().root
    settings = {
        "MACHINES_FILE": str(root / MACHINES),
        "STATUS_FILE": str(root / STATUS),
        "RUN_DIR": str(site.tunnel_run),
        "KEY_FILE": str(root / KEY),
    }
    return Unit(
        name=UNIT,
        argv=(sys.executable, "-m", "router.tunnels"),
        env={f"LETTERPRESS_TUNNELS_{name}": value for name, value in settings.items()},
    )


async def add(site: Site, machine: TunnelMachine, progress: Progress) -> None:
    """Have the service keep a tunnel to a machine, and run."""
    async with site.tunnels_changing:
        host = site.router_host()
        before = await _read(site)
        # A worker has one way: whoever had its name before was lost with its machine, and nobody took leave of it.
        known = {each.id: each for each in before.values() if machine.workers.keys().isdisjoint(each.workers)}
        known[machine.id] = machine
        if known != before:
            await _write(site, known)
        key = ensure_key(site.paths.secrets, TUNNEL).read_bytes()
        if await host.read(KEY) != key:
            await host.write(KEY, key)
        await host.ensure(tunnel_unit(site), lambda stage: progress(f"tunnel service: {stage}"))


async def remove(site: Site, machine_id: str, progress: Progress) -> None:
    """Have it keep that one no more; without any machine it ends."""
    async with site.tunnels_changing:
        known = await _read(site)
        if known.pop(machine_id, None) is not None:
            await _write(site, known)
        if not known:
            await site.router_host().remove(UNIT, progress)


async def end(site: Site, progress: Progress) -> None:
    """With the router: no service, and no machine that it would be told of again."""
    async with site.tunnels_changing:
        await site.router_host().remove(UNIT, progress)
        if await _read(site):
            await _write(site, {})


async def until_up(site: Site, worker: str, progress: Progress) -> None:
    """Return when the way to a worker is open. Raises ProviderError with the service's own reason if it stays shut."""
    found: TunnelView | None = None
    try:
        async with asyncio.timeout(UP_WITHIN_S):
            while True:
                found = _of(await view(site), worker)
                if found and any(way.worker == worker and way.up for way in found.forwards):
                    return
                if found and found.state is TunnelState.REFUSED:
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


async def view(site: Site) -> TunnelsView:
    """What the service wrote last."""
    content = await site.router_host().read(STATUS)
    try:
        return TunnelsView.model_validate_json(content or b"{}")
    except ValidationError:
        return TunnelsView()


def _of(said: TunnelsView, worker: str) -> TunnelView | None:
    return next((one for one in said.tunnels if any(way.worker == worker for way in one.forwards)), None)


async def _read(site: Site) -> dict[str, TunnelMachine]:
    content = await site.router_host().read(MACHINES)
    try:
        machines = TunnelMachines.model_validate_json(content).machines if content else []
    except ValidationError as error:
        raise ProviderError(f"{MACHINES} cannot be read; remove it and deploy again: {error}") from None
    return {machine.id: machine for machine in machines}


async def _write(site: Site, machines: dict[str, TunnelMachine]) -> None:
    content = TunnelMachines(machines=list(machines.values())).model_dump_json(indent=2)
    await site.router_host().write(MACHINES, content.encode() + b"\n")
