"""Watch's rounds on a real engine: what a cloud takes back is rented again, and said; a stack's time ends."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.deployment import Deployment, forget
from infra.emulate.account import Account
from infra.emulate.server import Fault, Trouble, serving
from infra.emulate.spheron import SpheronApi, published
from infra.engine.guard import BusyError, only_operation
from infra.engine.shelf import Shelf
from infra.paths import StackPaths
from infra.planning.placement import write_placement
from infra.planning.planner import placed
from infra.setup.engine import find_engine
from infra.stack import parse
from infra.state.custody import Custody, ask_a_person
from infra.state.safekeeping import Safekeeping
from infra.watch.decide import Deed
from infra.watch.run import Watch, watch
from tests.integration.infra.rented_rig import DESCRIPTION, MACHINES, NAME, Rig, environment, machines
from tests.waiting import eventually

pytestmark = pytest.mark.engine


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    api = SpheronApi(Account(), [replace(each, minimum_minutes=0) for each in published()])
    with serving(api) as emulator, tempfile.TemporaryDirectory(prefix="lp-", dir="/tmp") as run:
        for name, value in environment(emulator.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LETTERPRESS_RUN", run)
        monkeypatch.setenv("LETTERPRESS_HOME", str(tmp_path / "home"))
        (tmp_path / "stack.yaml").write_text(DESCRIPTION + "lives_for_hours: 2\n")
        yield Rig(tmp_path, emulator)


def told(rig: Rig) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (rig.paths.logs / "watch.log").read_text().splitlines()]
    return [(line["deed"], line["machine"]) for line in lines if line["deed"] != "progress"]


def test_a_lost_pool_is_replaced_silence_changes_nothing_and_its_time_ends(rig: Rig) -> None:
    rig.up()
    description = parse((rig.folder / "stack.yaml").read_text(), "stack.yaml", rig.folder)
    deployment = Deployment(description, rig.paths)
    deployment.remember()
    later = [0.0]
    watching = Watch(deployment, Safekeeping.remembered(rig.paths), lambda: time.time() + later[0], machines)

    quiet = watching.round()
    assert quiet is not None
    assert quiet.actions == ()

    lost = rig.emulator.account.take_back("batch-1")
    rig.emulator.faults.append(Fault(Trouble.SLOW, "createDeployment", seconds=4.0))
    first = watching.round()
    assert first is not None
    assert [(action.deed, action.machine) for action in first.actions] == [(Deed.REPLACE, "batch-1")]
    eventually(lambda: len(rig.alive()) == 3, 60, "its order is being carried out")

    # Another is lost while the first is still being brought up: nobody waits for that.
    lost += rig.emulator.account.take_back("batch-2")
    assert watching.work is not None
    second = watching.round()
    assert second is not None
    assert [(action.deed, action.machine) for action in second.actions] == [(Deed.REPLACE, "batch-2")]
    eventually(lambda: watching.work is not None and watching.work.done, 120, "all is brought about")
    settled = watching.round()
    assert settled is not None
    assert settled.actions == ()
    assert rig.alive() == sorted(MACHINES)
    assert {rental.name for rental in rig.emulator.account.alive()}.isdisjoint(lost), "under new names"
    assert len(rig.emulator.account.rentals) == 5, "nothing was rented twice"

    rig.emulator.faults.append(Fault(Trouble.BROKEN, times=99))
    assert watching.round() is None
    rig.emulator.faults.clear()
    assert rig.alive() == sorted(MACHINES)
    assert told(rig) == [("replace", "batch-1"), ("replace", "batch-2"), ("unanswered", "")]
    assert 'letterpress_watch_deeds_total{deed="replace"} 2' in (rig.paths.root / "watch.prom").read_text()

    later[0] = 2 * 3600.0 + 60
    rig.emulator.faults.append(Fault(Trouble.BROKEN, "deleteDeployment", times=99))
    assert watching.round() is None, "told, and tried again: they are paid for"
    assert told(rig)[-1] == ("failed", "")
    rig.emulator.faults.clear()
    with only_operation(rig.paths.root / "operation.lock", "status hired"):
        assert watching.round() is None
    assert told(rig)[-1] == ("busy", "")
    rig.emulator.account.rent(f"lp-{placed(rig.paths)[1].id}-batch-9-g1", 2.0, ())
    ended = watching.round()
    assert ended is not None
    assert ended.ends
    assert rig.alive() == []


def test_an_order_that_fails_again_and_again_is_not_repeated_with_every_look(rig: Rig) -> None:
    rig.up()
    deployment = Deployment(parse((rig.folder / "stack.yaml").read_text(), "stack.yaml", rig.folder), rig.paths)
    deployment.remember()
    later = [0.0]
    watching = Watch(deployment, Safekeeping.remembered(rig.paths), lambda: time.time() + later[0], machines)

    def looks(times: int) -> int:
        """How many orders so many looks lead to, each of them brought about as far as it goes."""
        before = rig.emulator.asked.count("createDeployment")
        for _ in range(times):
            watching.round()
            if watching.work:
                watching.work.wait(120)
        return rig.emulator.asked.count("createDeployment") - before

    rig.emulator.faults.append(Fault(Trouble.NO_STOCK, "createDeployment", times=3))
    rig.emulator.account.take_back("batch-1")
    assert looks(3) == 3, "sold out: the next offer, at once"
    assert looks(3) == 0, "and then somebody should look at it"
    assert told(rig)[-1] == ("paused", "")
    later[0] += 31
    assert looks(1) == 1
    assert rig.alive() == sorted(MACHINES)
    assert len(rig.emulator.account.rentals) == 4

    replace(deployment, description=deployment.description.model_copy(update={"budget_per_hour": 99.0})).remember()
    assert looks(1) == 0
    assert told(rig)[-1] == ("told", ""), "what is deployed now is what is watched"
    assert watching.deployment.description.budget_per_hour == 99.0

    rig.destroy()
    forget(rig.paths)
    assert looks(2) == 0, "what somebody destroyed is not lost"
    assert watching.over == "it was destroyed"
    assert rig.alive() == []


def remembered(rig: Rig) -> Deployment:
    deployment = Deployment(parse((rig.folder / "stack.yaml").read_text(), "stack.yaml", rig.folder), rig.paths)
    deployment.remember()
    return deployment


def test_what_was_destroyed_from_another_checkout_is_not_rented_again(rig: Rig) -> None:
    rig.up()
    watching = Watch(remembered(rig), Safekeeping.remembered(rig.paths), part=machines)
    rig.destroy()  # and this checkout is not told
    orders = rig.emulator.asked.count("createDeployment")
    for _ in range(3):
        watching.round()
        if watching.work:
            watching.work.wait(120)
    assert rig.emulator.asked.count("createDeployment") == orders
    assert watching.over == "it was destroyed"
    assert Deployment.kept(rig.paths) is None


def test_what_another_operator_decided_is_taken_over_before_anything_is_brought_about(rig: Rig) -> None:
    rig.up()
    deployment, binary = remembered(rig), find_engine()
    assert binary
    shelf = Shelf(NAME, binary, f"file://{rig.paths.pulumi}")
    mine = Custody(rig.paths, shelf, print, ask_a_person)
    mine.push()
    elsewhere = StackPaths(rig.folder / "theirs" / NAME, rig.paths.run)
    theirs = Custody(elsewhere, shelf, print, lambda: (rig.paths.secrets / "bundle-passphrase").read_text().strip())
    theirs.pull()
    decided, _ = placed(elsewhere)
    moved = tuple(replace(each, generation=7) if each.machine == "batch-1" else each for each in decided.machines)
    write_placement(elsewhere.root / "placement.json", replace(decided, machines=moved))
    theirs.keep_up()

    watching = Watch(deployment, replace(Safekeeping.remembered(rig.paths), bundle=mine), part=machines)
    rig.emulator.account.take_back("batch-1")
    orders = rig.emulator.asked.count("createDeployment")
    watching.round()
    assert rig.emulator.asked.count("createDeployment") == orders
    assert told(rig) == [("replace", "batch-1"), ("told", "")]
    watching.round()
    assert watching.work is not None
    watching.work.wait(120)
    assert rig.alive() == sorted(MACHINES)
    assert [rental.name for rental in rig.emulator.account.alive() if rental.name.endswith("-batch-1-g8")]
    theirs.catch_up()
    assert placed(elsewhere)[0] == placed(rig.paths)[0], "and they learn of it"


def test_one_stack_is_watched_from_one_terminal(rig: Rig) -> None:
    rig.paths.create()
    description = parse((rig.folder / "stack.yaml").read_text(), "stack.yaml", rig.folder)
    Deployment(description, rig.paths).remember()
    with only_operation(rig.paths.root / "watch.lock", "watch hired"), pytest.raises(BusyError, match="`watch hired`"):
        watch(NAME, rounds=1)
    assert os.environ["SPHERON_API_URL"] == rig.emulator.url
    assert rig.emulator.asked == []
