"""Whatever is killed while machines are ordered, the next run leaves exactly those that are described, and one bill."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from infra.emulate.account import Account
from infra.emulate.server import Emulator, Fault, Trouble, serving
from infra.emulate.spheron import SpheronApi, published
from infra.engine import OperationFailedError
from infra.errors import InfraError
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
    ["provider", pytest.param("engine", marks=pytest.mark.soak), pytest.param("command", marks=pytest.mark.soak)],
)
def test_a_kill_inside_the_orders_leaves_no_stray_and_no_second_machine(rig: Rig, victim: str) -> None:
    rig.emulator.faults.append(Fault(Trouble.SLOW, "createDeployment", times=3, seconds=1.5))
    with rig.deploying() as deploy:
        rig.kill(victim, deploy)
    rig.up()
    assert rig.alive() == sorted(MACHINES)
    assert rented_once(rig.emulator)
    rig.destroy()
    assert rig.alive() == []


BOUNDARIES = [
    ("up", operation, times)
    for operation, times in (("addKey", 1), ("balance", 1), *(("createDeployment", n) for n in (1, 2, 3)))
] + [("destroy", "deleteDeployment", n) for n in (1, 2, 3)]


@pytest.mark.soak
@pytest.mark.parametrize("victim", ["provider", "engine", "command"])
@pytest.mark.parametrize(("verb", "operation", "times"), BOUNDARIES)
def test_a_kill_at_each_boundary_leaves_no_stray_and_no_second_machine(
    rig: Rig, victim: str, verb: str, operation: str, times: int
) -> None:
    """Right after the provider's answer: nothing of what was done may be written down yet."""
    if verb == "destroy":
        rig.up()
    with rig.running(verb, lambda: rig.answered(operation) >= times) as command:
        rig.kill(victim, command)
    again(rig.up if verb == "up" else rig.destroy)
    assert rig.alive() == (sorted(MACHINES) if verb == "up" else [])
    assert rented_once(rig.emulator)
    again(rig.destroy)
    assert rig.alive() == []


STEPS = ("listOffers", "listDeployments", "listKeys", "addKey", "balance", "createDeployment", "deleteDeployment")
TROUBLES = tuple(trouble for trouble in Trouble if trouble is not Trouble.NO_STOCK)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("trouble", "step"), [*itertools.product(TROUBLES, STEPS), (Trouble.NO_STOCK, "createDeployment")]
)
def test_whatever_goes_wrong_at_any_step_the_same_command_again_leaves_what_is_described(
    rig: Rig, trouble: Trouble, step: str
) -> None:
    rig.emulator.faults.append(Fault(trouble, step, seconds=0.2))
    again(rig.up)
    assert rig.alive() == sorted(MACHINES)
    assert rented_once(rig.emulator)
    again(rig.destroy)
    assert rig.alive() == []
    assert rig.emulator.faults[0].times == 0, "it did go wrong"


def again(command: Callable[[], object]) -> None:
    """As a person does whom it tells to; three times is enough."""
    for _ in range(2):
        with suppress(InfraError):
            command()
            return
    command()


@pytest.mark.soak
def test_two_people_with_one_name_of_a_stack_on_one_account_never_touch_each_others(rig: Rig) -> None:
    theirs = Rig(rig.folder / "theirs", rig.emulator)
    theirs.folder.mkdir()
    (theirs.folder / "stack.yaml").write_text(DESCRIPTION)
    with rig.deploying() as mine:
        theirs.up()
        assert mine.wait(120) == 0
    assert rig.alive() == sorted([*MACHINES, *MACHINES])
    assert rented_once(rig.emulator)
    bought = {rental.name for rental in rig.emulator.account.alive()}
    theirs.destroy()
    assert rig.alive() == sorted(MACHINES)
    assert {rental.name for rental in rig.emulator.account.alive()} < bought
    rig.up()
    assert len(rig.emulator.account.rentals) == 6, "what was theirs was not mine to replace"
    rig.destroy()


@pytest.mark.soak
def test_ten_machines_are_up_hardly_later_than_the_slowest(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    slowest = 8.0
    (rig.folder / "stack.yaml").write_text(
        DESCRIPTION.replace("machines: 1,", "machines: 5,").replace("machines: 2,", "machines: 5,")
    )
    rig.emulator.faults += [Fault(Trouble.SLOW, "createDeployment", seconds=slowest - n / 2) for n in range(10)]
    began = time.monotonic()
    rig.up()
    took = time.monotonic() - began
    with capsys.disabled():
        print(f"\nten machines: {took:.1f} s; the slowest order {slowest:.1f} s")
    assert len(rig.alive()) == 10
    assert took <= 1.3 * slowest + 10
    rig.destroy()


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
