"""Whatever is killed while machines are ordered, the next run leaves exactly those that are described, and one bill."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.emulate.account import Account
from infra.emulate.server import Emulator, Fault, Trouble, serving
from infra.emulate.spheron import SpheronApi, published
from infra.engine import OperationFailedError
from infra.planning.placement import read_placement
from tests.integration.infra.rented_rig import DESCRIPTION, MACHINES, Rig, environment

pytestmark = pytest.mark.engine


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    api = SpheronApi(Account(), [replace(each, minimum_minutes=0) for each in published()])
    with serving(api) as emulator:
        for name, value in environment(emulator.url).items():
            monkeypatch.setenv(name, value)
        (tmp_path / "stack.yaml").write_text(DESCRIPTION)
        with tempfile.TemporaryDirectory(prefix="lp-", dir="/tmp") as run:  # sockets want a short path
            monkeypatch.setenv("LETTERPRESS_RUN", run)
            yield Rig(tmp_path, emulator)


def rented_once(emulator: Emulator) -> bool:
    """By the bill: no name was ever paid for twice."""
    return set(Counter(rental.name for rental in emulator.account.rentals.values()).values()) <= {1}


@pytest.mark.parametrize(
    "victim",
    ["provider", pytest.param("engine", marks=pytest.mark.soak), pytest.param("deploy", marks=pytest.mark.soak)],
)
def test_a_kill_inside_the_orders_leaves_no_stray_and_no_second_machine(rig: Rig, victim: str) -> None:
    rig.emulator.faults.append(Fault(Trouble.SLOW, "createDeployment", times=3, seconds=1.5))
    with rig.deploying() as deploy:
        match victim:
            case "provider":
                rig.kill_provider()
            case "engine":
                rig.kill_engine()
            case _:
                deploy.kill()
    rig.up()
    assert rig.alive() == sorted(MACHINES)
    assert rented_once(rig.emulator)
    rig.destroy()
    assert rig.alive() == []


def test_a_phantom_moves_its_machine_to_the_next_offer_and_no_other(rig: Rig) -> None:
    api = rig.emulator.api
    assert isinstance(api, SpheronApi)
    for each in api.stock:
        each.regions = ("eu-north",)
        each.phantom = each.gpu_type == "A100_SXM4_80G"
    with pytest.raises(OperationFailedError, match="left aside for 15 minutes"):
        rig.up()
    rig.up()
    assert rig.alive() == sorted(MACHINES)
    placement = read_placement(rig.paths.root / "placement.json")
    assert {each.machine: each.offer.gpu for each in placement.machines} == {
        "interactive-1": "H100-PCIe",
        "batch-1": "A100-PCIe-80GB",
        "batch-2": "A100-PCIe-80GB",
    }
    assert rented_once(rig.emulator)
    rig.destroy()


def test_prices_that_move_move_nothing_that_is_rented_and_a_lost_pool_is_rented_again(rig: Rig) -> None:
    api = rig.emulator.api
    assert isinstance(api, SpheronApi)
    rig.up()
    before = read_placement(rig.paths.root / "placement.json")
    for each in api.stock:
        each.price *= 3
        each.available = each.gpu_type != "H100_PCIE"
    assert len(rig.emulator.account.take_back("batch")) == 2
    rig.up()
    assert read_placement(rig.paths.root / "placement.json") == before
    assert rig.alive() == sorted(MACHINES)
    assert rig.emulator.asked.count("createDeployment") == 5, "the machine that runs was left alone"
    rig.destroy()
    assert rig.alive() == []
