"""What a stack whose state was lost leaves running is ended, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.clouds import MachineSpec
from infra.clouds.local import LocalCloud
from infra.clouds.runpod_serverless import EndpointSpec
from infra.deployment import Deployment, forget
from infra.emulate.runpod import KEY, RunpodApi
from infra.emulate.server import Emulator, Fault, Trouble, serving
from infra.emulate.spheron import KEY as SPHERON_KEY
from infra.emulate.spheron import SpheronApi
from infra.hosts import UnitState
from infra.hosts.local import LocalHost
from infra.identity import Identity
from infra.paths import StackPaths
from infra.planning.planner import placed
from infra.provider.site import Site
from infra.stack import CloudName, parse
from infra.strays import StraysError, end_strays, rented, strays
from tests.integration.infra.rented_rig import DESCRIPTION
from tests.integration.infra.sleepers import mark, sleeper, sleeping


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StackPaths:
    monkeypatch.setenv("LETTERPRESS_RUN", str(tmp_path / "run"))
    paths = StackPaths.of("lost", tmp_path / "home")
    paths.create()
    return paths


async def rent(paths: StackPaths, identity: Identity, marked: str) -> str:
    """A machine with a unit on it; its name."""
    cloud = LocalCloud(paths)
    offer = next(offer for offer in await cloud.offers() if not offer.gpus)
    machine = await cloud.create(MachineSpec(identity.machine("batch-1", 1), offer))
    await cloud.host(machine).ensure(sleeper(marked, "batch-1"), lambda _: None)
    return machine.name


async def test_units_and_machines_that_no_state_knows_of_are_ended_by_name(paths: StackPaths) -> None:
    marked = mark()
    _, identity = placed(paths)
    machine = await rent(paths, identity, marked)
    router = LocalHost("router", paths.router, paths.logs)
    for unit in ("edge", "router"):
        await router.ensure(sleeper(marked, unit), lambda _: None)

    assert await end_strays(paths) == ("edge", "router", machine)

    assert sleeping(marked) == []
    assert await LocalCloud(paths).list(identity.id) == []
    assert await router.units() == {}
    assert await end_strays(paths) == (), "a second time there is nothing left to end"


async def test_a_machine_of_another_id_is_left_alone(paths: StackPaths) -> None:
    marked = mark()
    theirs = await rent(paths, Identity("zzzzzzzz"), marked)
    assert await end_strays(paths) == ()
    host = LocalCloud(paths).host(next(iter(await LocalCloud(paths).list("zzzzzzzz"))))
    assert (await host.observe("batch-1")).state is UnitState.RUNNING
    await LocalCloud(paths).delete(theirs)


@pytest.fixture
def spheron(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with serving(SpheronApi()) as emulator:
        monkeypatch.setenv("SPHERON_API_URL", emulator.url)
        monkeypatch.setenv("SPHERON_API_KEY", SPHERON_KEY)
        monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
        yield emulator


def remember(paths: StackPaths) -> Deployment:
    deployment = Deployment(parse(DESCRIPTION, "stack.yaml", paths.root), paths)
    deployment.remember()
    return deployment


async def test_a_cloud_without_its_key_is_not_taken_for_an_empty_one(
    paths: StackPaths, spheron: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(paths)
    spheron.account.rent(f"lp-{placed(paths)[1].id}-batch-1-g1", 2.0, ())
    monkeypatch.delenv("SPHERON_API_KEY")
    for asked in (rented(paths), strays(paths, frozenset()), end_strays(paths)):
        with pytest.raises(StraysError, match="SPHERON_API_KEY is not set, so spheron cannot be asked"):
            await asked
    forget(paths)
    assert await rented(paths) == (), "of a stack that is gone nothing says that it ever rented"


async def test_one_that_is_not_given_up_yet_keeps_none_of_the_others(paths: StackPaths, spheron: Emulator) -> None:
    remember(paths)
    _, identity = placed(paths)
    kept, *others = [identity.machine(name, 1) for name in ("batch-1", "batch-2", "interactive-1")]
    spheron.account.rent(kept, 2.0, (), minimum_s=1200.0)
    for name in others:
        spheron.account.rent(name, 2.0, ())
    with pytest.raises(StraysError, match="minutes") as caught:
        await end_strays(paths)
    assert all(name in str(caught.value) for name in others), "and says which are ended"
    assert [rental.name for rental in spheron.account.alive()] == [kept]


async def test_a_cloud_that_is_away_does_not_keep_what_another_has(paths: StackPaths, spheron: Emulator) -> None:
    marked = mark()
    machine = await rent(paths, placed(paths)[1], marked)
    spheron.faults.append(Fault(Trouble.BROKEN, "listDeployments", times=99))
    with pytest.raises(StraysError, match="Spheron"):
        await end_strays(paths)
    assert sleeping(marked) == []
    assert await LocalCloud(paths).list(placed(paths)[1].id) == [], machine


def test_endpoints_and_their_volumes_are_strays_too(paths: StackPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(RunpodApi()) as emulator:
        monkeypatch.setenv("RUNPOD_API_URL", emulator.url)
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        name = f"lp-{placed(paths)[1].id}-endpoint-images"
        spec = EndpointSpec(name, "registry.example/worker:1", ("ADA_80_PRO",), volume_gb=60, data_center="EU-RO-1")
        serverless = Site(paths, {"RUNPOD_API_URL": emulator.url, "RUNPOD_API_KEY": KEY}).serverless()
        asyncio.run(serverless.ensure(spec))
        (found,) = asyncio.run(strays(paths, frozenset()))
        assert (found.name, found.cloud) == (name, CloudName.RUNPOD)
        assert asyncio.run(strays(paths, frozenset({name}))) == (), "known to the state"
        assert asyncio.run(end_strays(paths)) == (name,)
        assert asyncio.run(serverless.left(placed(paths)[1].id)) == []


def test_the_time_of_a_stack_runs_from_its_first_deploy_and_ends_with_it(paths: StackPaths) -> None:
    deployment = remember(paths)
    began = deployment.began(5e9)
    assert began < 5e9, "the deploy's own time, not that of the first watch"
    deployment.remember()
    assert deployment.began(5e9) == began
    (paths.root / "watch-began").write_text("1000\n")
    deployment.remember()
    assert deployment.began(5e9) == 1000.0
    deployment.remember(exists=False)
    assert deployment.began(5e9) >= began, "destroyed from another checkout, it begins anew"
    forget(paths)
    assert deployment.began(5e9) == 5e9, "the fleet of tomorrow is not ended by the clock of yesterday's"
