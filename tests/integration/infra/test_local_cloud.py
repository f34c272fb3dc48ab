"""This computer as a cloud."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.clouds import CloudError, MachineSpec, Market, Offer, Presence
from infra.clouds.local import LocalCloud
from infra.paths import StackPaths
from tests.integration.infra.sleepers import mark, sleeper, sleeping

NAME = "lp-k3x9-worker-1-g1"

SMI = """\
#!/bin/sh
[ "$1 $2" = "--query-gpu=index,name --format=csv,noheader" ] || exit 9
printf '0, NVIDIA H100 80GB HBM3\\n1, NVIDIA L4\\n'
"""


def silent(stage: str) -> None:
    """Nobody follows."""


@pytest.fixture
def cloud(tmp_path: Path) -> LocalCloud:
    return LocalCloud(StackPaths(root=tmp_path / "stack", run=tmp_path / "run"))


def spec(name: str = NAME, offer: str = "cpu.on_demand") -> MachineSpec:
    return MachineSpec(name, Offer(offer, "local", Market.ON_DEMAND, "", 0, "here", 0.0))


def machine_with(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `nvidia-smi` on this machine be what `program` says."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(program)
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:/usr/bin:/bin")


async def test_a_machine_that_was_made_is_found_by_its_name_and_by_its_id(cloud: LocalCloud) -> None:
    made = await cloud.create(spec())
    assert await cloud.find(NAME) == made
    assert (await cloud.look(made.id)).machine == made


async def test_what_was_never_made_is_gone(cloud: LocalCloud) -> None:
    assert await cloud.find(NAME) is None
    assert (await cloud.look(NAME)).presence is Presence.GONE
    assert list(await cloud.list("k3x9")) == []


async def test_a_name_is_given_once_and_the_first_machine_keeps_it(cloud: LocalCloud) -> None:
    made = await cloud.create(spec())
    with pytest.raises(CloudError, match=f"{NAME}: a machine of this name is there already"):
        await cloud.create(spec())
    assert [entry.name for entry in cloud.paths.machines.iterdir()] == [made.name]


async def test_the_machines_of_a_stack_are_listed_and_no_others(cloud: LocalCloud) -> None:
    for name in ("lp-k3x9-b-g1", "lp-k3x9-a-g1", "lp-other-a-g1"):
        await cloud.create(spec(name))
    assert [machine.name for machine in await cloud.list("k3x9")] == ["lp-k3x9-a-g1", "lp-k3x9-b-g1"]


async def test_deleting_ends_what_runs_on_the_machine_and_keeps_its_logs(cloud: LocalCloud) -> None:
    machine = await cloud.create(spec())
    other = await cloud.create(spec("lp-k3x9-worker-2-g1"))
    ours, theirs = mark(), mark()
    await cloud.host(machine).ensure(sleeper(ours, "ours"), silent)
    await cloud.host(other).ensure(sleeper(theirs, "theirs"), silent)
    await cloud.delete(machine.id)
    assert (len(sleeping(ours)), len(sleeping(theirs))) == (0, 1)
    assert (await cloud.look(machine.id)).presence is Presence.GONE
    assert (cloud.paths.logs / "ours.log").exists()
    await cloud.delete(other.id)
    assert list(cloud.paths.machines.iterdir()) == []


async def test_deleting_twice_is_success(cloud: LocalCloud) -> None:
    machine = await cloud.create(spec())
    await asyncio.gather(cloud.delete(machine.id), cloud.delete(machine.id))
    await cloud.delete(machine.id)


async def test_a_cloud_that_cannot_be_read_does_not_call_its_machines_gone(cloud: LocalCloud) -> None:
    await cloud.create(spec())
    cloud.paths.machines.rename(cloud.paths.root / "elsewhere")
    cloud.paths.machines.symlink_to(cloud.paths.machines)  # a loop: whoever asks gets an error, root as well
    assert (await cloud.look(NAME)).presence is Presence.UNKNOWN


async def test_the_cpu_is_on_offer_in_both_markets_for_nothing(
    cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_with("#!/bin/sh\nexit 9\n", tmp_path, monkeypatch)
    offers = await cloud.offers()
    assert {(offer.id, offer.market, offer.gpus, offer.price) for offer in offers} == {
        ("cpu.on_demand", Market.ON_DEMAND, 0, 0.0),
        ("cpu.spot", Market.SPOT, 0, 0.0),
    }


async def test_each_gpu_is_on_offer_by_its_index_and_model(
    cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_with(SMI, tmp_path, monkeypatch)
    gpus = {(offer.id, offer.gpu) for offer in await cloud.offers() if offer.market is Market.ON_DEMAND and offer.gpus}
    assert gpus == {("gpu-0.on_demand", "NVIDIA H100 80GB HBM3"), ("gpu-1.on_demand", "NVIDIA L4")}


async def test_a_gpu_is_one_machines_until_that_is_deleted(cloud: LocalCloud) -> None:
    first = await cloud.create(spec("lp-k3x9-a-g1", "gpu-0.on_demand"))
    with pytest.raises(CloudError, match="GPU 0 of this computer is lp-k3x9-a-g1's already"):
        await cloud.create(spec("lp-k3x9-b-g1", "gpu-0.spot"))
    await cloud.create(spec("lp-k3x9-c-g1", "gpu-1.spot"))
    await cloud.delete(first.id)
    assert (await cloud.create(spec("lp-k3x9-b-g1", "gpu-0.spot"))).name == "lp-k3x9-b-g1"


async def test_a_name_that_would_leave_the_folder_is_refused(cloud: LocalCloud) -> None:
    with pytest.raises(CloudError, match="cannot be a machine's name"):
        await cloud.create(spec("../elsewhere"))
