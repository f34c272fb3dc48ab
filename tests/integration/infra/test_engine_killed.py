"""Deploys that are killed, interrupted or locked out, and what the next command makes of it."""

from __future__ import annotations

import json
import os
import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.engine.guard import BusyError, orphans
from infra.hosts.processes import Process, process
from tests.integration.infra.engine_rig import NAME, Rig, new_rig
from tests.waiting import eventually

pytestmark = pytest.mark.engine


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with new_rig(tmp_path) as rig:
        rig.let_workers("3", "ready")
        yield rig


def engine_of(rig: Rig) -> Process:
    """The Pulumi engine at work: it leads its session, its provider does not."""
    return next(each for each in orphans(rig.paths.root) if each.pid == each.session)


def nobody_works(rig: Rig) -> bool:
    return orphans(rig.paths.root) == ()


def test_after_a_killed_deploy_the_next_one_adopts_what_is_there_and_makes_nothing_twice(rig: Rig) -> None:
    with rig.deploying() as command:
        command.kill()
    running, machines = rig.pids(), rig.machines()
    assert {"router", "interactive-1", "batch-1"} <= set(running)
    assert len(machines) == 2
    rig.up()
    assert rig.pids() | running == rig.pids(), "every process of before is the one of now"
    assert rig.machines() == machines
    assert not rig.up().changes


def test_after_a_killed_deploy_a_destroy_leaves_nothing(rig: Rig) -> None:
    with rig.deploying() as command:
        command.kill()
    rig.destroy()
    assert rig.left_over() == []


def test_after_a_killed_engine_its_provider_ends_and_the_next_deploy_goes_on(rig: Rig) -> None:
    with rig.deploying() as command:
        os.kill(engine_of(rig).pid, signal.SIGKILL)
        output, _ = command.communicate(timeout=30)
        assert command.returncode != 0
    eventually(lambda: nobody_works(rig), 10, "the provider ends with its engine")
    assert "Error" in output
    running, machines = rig.pids(), rig.machines()
    rig.up()
    assert rig.pids() | running == rig.pids()
    assert rig.machines() == machines


def test_attributes_that_an_older_engine_left_torn_keep_nobody_from_the_state(rig: Rig) -> None:
    """Killed at the right microsecond, it had created the file beside the state and not yet filled it."""
    rig.up()
    state = next(rig.paths.pulumi.glob(f"**/stacks/**/{NAME}.json"))
    assert not list(rig.paths.pulumi.rglob("*.attrs")), "this release writes none"
    torn = state.with_name(f"{state.name}.attrs")
    torn.touch()
    assert not rig.up().changes
    assert not torn.exists()


def test_an_engine_whose_command_is_gone_is_ended_by_the_next_one(rig: Rig) -> None:
    """A stopped engine cannot notice that its command was killed; it holds Pulumi's lock and lives."""
    with rig.deploying() as command:
        engine = engine_of(rig)
        os.kill(engine.pid, signal.SIGSTOP)
        command.kill()
        command.wait()
    assert process(engine.pid) == engine
    rig.up()
    assert process(engine.pid) != engine
    assert not rig.up().changes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_deploy_stops_cleanly_and_the_next_one_goes_on(rig: Rig, number: signal.Signals) -> None:
    with rig.deploying() as command:
        command.send_signal(number)
        output, _ = command.communicate(timeout=30)
    assert "interrupted; what was begun is kept" in output
    assert nobody_works(rig)
    assert not list(rig.paths.pulumi.glob("**/locks/**/*.json")), "its lock is released"
    running = rig.pids()
    rig.up()
    assert rig.pids() | running == rig.pids()


def test_a_second_deploy_while_one_is_under_way_is_told_which_process_holds_the_stack(rig: Rig) -> None:
    with rig.deploying() as command:
        with pytest.raises(BusyError, match=rf"`deploy` \(process {command.pid}, since"):
            rig.up()
        command.communicate(timeout=60)
        assert command.returncode == 0


def test_a_lock_that_another_host_holds_is_respected_and_named(rig: Rig) -> None:
    rig.up()
    lock = next(rig.paths.pulumi.glob("**/locks/**/")) / "organization" / "letterpress" / NAME / f"{uuid.uuid4()}.json"
    lock.parent.mkdir(parents=True, exist_ok=True)
    owner = {"pid": 4711, "username": "somebody", "hostname": "elsewhere", "timestamp": "2026-11-23T21:07:22.1Z"}
    lock.write_text(json.dumps(owner))
    said = re.escape("locked by somebody@elsewhere (process 4711) since 2026-11-23 21:07:22 UTC, on another machine")
    with pytest.raises(BusyError, match=said):
        rig.up()
    assert lock.exists()
    lock.unlink()
