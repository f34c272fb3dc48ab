"""Whom the tunnel service is told of: never of a worker that the stack has no more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.paths import StackPaths
from infra.provider.place import RouterPlace
from infra.provider.registration import RegistrationResource, RegistrationState
from infra.provider.site import Site
from infra.provider.tunnels import MACHINES, STATUS, end, view, without_worker
from router.contract import TunnelMachine, TunnelMachines, TunnelsView
from router.contract.tunnels import STALE
from tests.ports import free_ports

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB8HBy8ux5+vvJ2DqbIzvCyR3fmPC0hyFBJHd3d5ZQPd"


def machine(name: str, **workers: int) -> TunnelMachine:
    return TunnelMachine(id=name, host="192.0.2.1", user="root", host_key=KEY, workers=workers)


def unheard(_: str) -> None:
    pass


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(StackPaths.of("s", tmp_path), {})


def told(site: Site) -> list[TunnelMachine]:
    return TunnelMachines.model_validate_json((site.paths.router / MACHINES).read_bytes()).machines


async def test_a_lost_machine_that_a_shrinking_pool_drops_leaves_no_tunnel_behind(site: Site) -> None:
    """Its WorkerHost went with it when the state was refreshed: what is left to end is its worker's registration."""
    lost, kept = machine("lp-a-2-g1", a2=9101), machine("lp-a-1-g1", a1=9100)
    (site.paths.router / MACHINES).parent.mkdir(parents=True)
    (site.paths.router / MACHINES).write_text(TunnelMachines(machines=[lost, kept]).model_dump_json())
    (port,) = free_ports(1)
    away = f"http://127.0.0.1:{port}"
    state = RegistrationState(worker="a2", pool="a", url="tunnel:a2", token="f", admin_url=away)

    await RegistrationResource(site).delete(state, unheard)
    assert told(site) == [kept]

    await RegistrationResource(site).delete(state.model_copy(update={"worker": "a1", "url": "tunnel:a1"}), unheard)
    assert told(site) == []


async def test_a_status_from_before_this_computers_last_restart_is_no_news(site: Site) -> None:
    here = RouterPlace(site, None)
    (site.paths.router / STATUS).parent.mkdir(parents=True)
    for age, heard in ((timedelta(0), True), (STALE + timedelta(seconds=1), False)):
        said = TunnelsView(written_at=datetime.now(UTC) - age, trouble="told")
        (site.paths.router / STATUS).write_text(said.model_dump_json())
        assert bool((await view(here)).trouble) is heard


async def test_a_service_that_ends_is_told_of_no_machine_whatever_stood_there(site: Site) -> None:
    file = site.paths.router / MACHINES
    file.parent.mkdir(parents=True)
    for content in (TunnelMachines(machines=[machine("m", a=9100)]).model_dump_json(), "no JSON at all"):
        file.write_text(content)
        await end(RouterPlace(site, None), unheard)
        assert told(site) == []


def test_a_machine_keeps_the_ways_to_its_other_workers() -> None:
    known = {"m": machine("m", a=9100, b=9101), "n": machine("n", c=9102)}
    assert without_worker(known, "b") == {"m": machine("m", a=9100), "n": known["n"]}
    assert without_worker(known, "c") == {"m": known["m"]}
    assert without_worker(known, "d") == known
