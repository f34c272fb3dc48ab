"""What a stack whose state was lost leaves running is ended, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.clouds import MachineSpec
from infra.clouds.local import LocalCloud
from infra.hosts import UnitState
from infra.identity import Identity
from infra.paths import StackPaths
from infra.planner import placed
from infra.provider.site import Site
from infra.strays import end_strays
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
    router = Site(paths, {}).router_host()
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
