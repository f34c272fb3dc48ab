"""Whatever is done to units, in whatever order: one process where one is described, none where none is."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infra.hosts import UnitState, UnitStatus
from infra.hosts.local import LocalHost
from tests.integration.infra.sleepers import mark, parent, sleeper, sleeping, until

NAMES = ("a", "b")
names = st.sampled_from(NAMES)


def silent(stage: str) -> None:
    """Nobody follows."""


class UnitsOfAHost(RuleBasedStateMachine):
    """`wanted` is what each unit's last change asked for; None where it was removed, or never was."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="lp-")
        self.host = LocalHost("here", Path(self.folder.name) / "h", Path(self.folder.name) / "logs", first_moment=0.01)
        self.loop = asyncio.new_event_loop()
        self.marks = {name: (mark(), mark()) for name in NAMES}
        self.wanted: dict[str, int] = {}
        self.killed: set[str] = set()

    @initialize()
    def a_bystander(self) -> None:
        self.bystander = mark()
        self.loop.run_until_complete(self.host.ensure(sleeper(self.bystander, "bystander"), silent))

    def observe(self, name: str) -> UnitStatus:
        return self.loop.run_until_complete(self.host.observe(name))

    @rule(name=names, version=st.integers(0, 1), children=st.booleans())
    def ensure(self, name: str, version: int, children: bool) -> None:
        before = self.observe(name)
        unit = (parent if children else sleeper)(self.marks[name][version], name)
        after = self.loop.run_until_complete(self.host.ensure(unit, silent))
        assert (after.state, after.fingerprint) == (UnitState.RUNNING, unit.fingerprint)
        if before.state is UnitState.RUNNING and before.fingerprint == unit.fingerprint:
            assert after.pid == before.pid
        self.wanted[name] = version
        self.killed.discard(name)
        if children:
            self.loop.run_until_complete(until(lambda: len(sleeping(self.marks[name][version])) == 3))

    @rule(name=names)
    def remove(self, name: str) -> None:
        self.loop.run_until_complete(self.host.remove(name, silent))
        self.wanted.pop(name, None)
        self.killed.discard(name)
        assert name not in self.loop.run_until_complete(self.host.units())

    @precondition(lambda self: set(self.wanted) - self.killed)
    @rule(name=names)
    def kill(self, name: str) -> None:
        status = self.observe(name)
        if status.pid is None:
            return
        os.kill(status.pid, signal.SIGKILL)
        self.killed.add(name)
        self.loop.run_until_complete(until(lambda: self.observe_now(name) is not UnitState.RUNNING))

    def observe_now(self, name: str) -> UnitState:
        observing = self.host.observe(name)
        try:
            observing.send(None)
        except StopIteration as done:
            status: UnitStatus = done.value
            return status.state
        raise AssertionError("observe waited for something")

    @invariant()
    def what_runs_is_what_was_asked_for(self) -> None:
        for name, versions in self.marks.items():
            wanted = self.wanted.get(name)
            for version, marked in enumerate(versions):
                found = sleeping(marked)
                if version != wanted:
                    assert found == []
                elif name not in self.killed:
                    assert self.observe(name).pid in found
            if name not in self.killed:
                expected = UnitState.STOPPED if wanted is None else UnitState.RUNNING
                assert self.observe(name).state is expected

    @invariant()
    def the_bystander_lives(self) -> None:
        if hasattr(self, "bystander"):
            assert len(sleeping(self.bystander)) == 1

    def teardown(self) -> None:
        for name in (*NAMES, "bystander"):
            self.loop.run_until_complete(self.host.remove(name, silent))
        left = [marked for versions in self.marks.values() for marked in versions if sleeping(marked)]
        self.loop.close()
        self.folder.cleanup()
        assert left == []


UnitsOfAHost.TestCase.settings = settings(
    max_examples=8,
    stateful_step_count=12,
    deadline=None,  # real processes on a machine that others use, too
    suppress_health_check=[HealthCheck.too_slow],
)
TestUnitsOfAHost = UnitsOfAHost.TestCase
