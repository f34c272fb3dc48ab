"""A stack for tests of the Pulumi layer: the real engine, provider, nginx and units, with stand-ins to serve.

`python -m tests.integration.infra.engine_rig FOLDER up` brings the stack of a folder up, in a process that
a test can kill.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from infra.engine import Engine, EngineSettings, OnFailure, operate
from infra.engine.events import Action, Outcome, Progress
from infra.engine.guard import orphans
from infra.hosts.local import LocalHost
from infra.hosts.processes import process
from infra.paths import StackPaths, repository_root
from infra.planning.planner import plan
from infra.planning.program import Declared, Program, Programs
from infra.provider.site import Site
from infra.setup.engine import find_engine
from infra.stack import parse
from infra.state.backend import own
from tests.emulators import stand_ins
from tests.ports import free_ports
from tests.waiting import eventually

NAME = "rig"
DESCRIPTION = """\
name: rig
model: tiny
router: {{edge: {{port: {0}}}, admin: {{port: {1}}}}}
pools:
  interactive: {{machines: 1, market: on_demand, first_port: {2}}}
  batch: {{machines: 1, market: spot, first_port: {3}}}
"""
READY = ("0", "ready")


@cache
def pulumi_engine() -> Path:
    """Looked for once: it is started to be asked for its version."""
    found = find_engine()
    assert found, "no Pulumi engine: run `make setup-test`"
    return found


@dataclass
class Rig:
    """One stack in `folder`: its description, what its workers do, and what was told of it."""

    folder: Path
    progress: list[Progress] = field(default_factory=list)
    backend: str = ""
    """Where the state is kept; in the stack's folder unless it says otherwise."""

    @property
    def paths(self) -> StackPaths:
        return StackPaths.of(NAME, self.folder / "home")

    @property
    def description(self) -> Path:
        return self.folder / "stack.yaml"

    def describe(self, before: str, after: str) -> None:
        text = self.description.read_text()
        assert before in text
        self.description.write_text(text.replace(before, after))

    def let_workers(self, *arguments: str) -> None:
        """What the stand-in workers do from now on: seconds of loading, and how that ends."""
        (self.folder / "workers").write_text(" ".join(arguments))

    def declared(self) -> tuple[Declared, ...]:
        arguments = (self.folder / "workers").read_text().split()
        worker = Program((sys.executable, stand_ins.__file__, "worker", *arguments), "1")
        router = Program((sys.executable, stand_ins.__file__, "router"), "1")
        description = parse(self.description.read_text(), "stack.yaml", self.folder)
        decided = asyncio.run(plan(description, self.paths, Programs(worker, router)))
        decided.keep(self.paths)
        return decided.declared

    @property
    def settings(self) -> EngineSettings:
        return EngineSettings(pulumi_engine(), self.backend or own(self.paths))

    @contextmanager
    def engine(self, what: str = "test") -> Iterator[Engine]:
        with operate(NAME, self.paths, self.declared(), self.settings, what) as engine:
            yield engine

    def preview(self) -> Outcome:
        with self.engine() as engine:
            return engine.preview(self.progress.append)

    def up(self, on_failure: OnFailure = OnFailure.STOP) -> Outcome:
        with self.engine() as engine:
            return engine.up(self.progress.append, on_failure)

    def destroy(self) -> Outcome:
        with self.engine() as engine:
            return engine.destroy(self.progress.append)

    @contextmanager
    def deploying(self) -> Iterator[subprocess.Popen[str]]:
        """A deploy in a process of its own, once its workers have said that they are loading."""
        with subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.folder)],
            cwd=repository_root(),
            env={**os.environ, "LETTERPRESS_HOME": str(self.folder / "home")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as command:
            try:
                assert command.stdout
                said = ""
                while "reading weights" not in said:
                    said = command.stdout.readline()
                    assert said, "the deploy ended before its workers were loading"
                yield command
            finally:
                command.kill()

    def host(self, unit: str) -> LocalHost:
        """The host that keeps the unit."""
        files = list(self.paths.root.glob(f"**/units/{unit}.json"))
        root = files[0].parent.parent if files else self.paths.router
        return LocalHost("rig", root, self.paths.logs)

    def pids(self) -> dict[str, int | None]:
        """Every unit's main process, None if it does not run."""
        names = [file.stem for file in self.paths.root.glob("**/units/*.json")]
        return {name: asyncio.run(self.host(name).observe(name)).pid for name in names}

    def kill(self, unit: str) -> None:
        """kill -9 of the unit's main process, seen through to its end."""
        pid = self.pids()[unit]
        assert pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: process(pid) is None, 5, f"{unit} is dead")

    def machines(self) -> list[str]:
        cloud = Site(self.paths, {}).cloud(parse(self.description.read_text(), "", self.folder).cloud)
        stack_id = (self.paths.root / "stack-id").read_text().strip()
        return [machine.name for machine in asyncio.run(cloud.list(stack_id))]

    def left_over(self) -> list[str]:
        """What a destroyed stack must not leave: processes, machines, listening ports, a state."""
        running = [f"unit {name}" for name, pid in self.pids().items() if pid]
        working = [f"process {each.pid}" for each in orphans(self.paths.root)]
        states = [str(file) for file in self.paths.pulumi.glob("**/stacks/**/rig.json")]
        return [*running, *working, *self.machines(), *states, *self._listening()]

    def _listening(self) -> list[str]:
        listening = []
        for port in self.ports():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    listening.append(f"port {port}")
        return listening

    def ports(self) -> list[int]:
        return [int(word) for word in (self.folder / "ports").read_text().split()]


@contextmanager
def new_rig(folder: Path) -> Iterator[Rig]:
    """A described stack that is not up; whatever a test leaves of it is ended."""
    ports = free_ports(4)
    (folder / "ports").write_text(" ".join(str(port) for port in ports))
    rig = Rig(folder)
    rig.description.write_text(DESCRIPTION.format(*ports))
    rig.let_workers(*READY)
    # Sockets want a short path, and nginx's user a way to it.
    with tempfile.TemporaryDirectory(prefix="lp-", dir="/tmp") as run:
        Path(run).chmod(0o711)
        before = os.environ.get("LETTERPRESS_RUN")
        os.environ["LETTERPRESS_RUN"] = run
        try:
            yield rig
            rig.let_workers(*READY)
            rig.destroy()
        finally:
            os.environ.pop("LETTERPRESS_RUN")
            if before is not None:
                os.environ["LETTERPRESS_RUN"] = before


def done(outcome: Outcome) -> dict[str, Action]:
    """What was done to which resource."""
    return {change.resource: change.action for change in outcome.changes}


def main(folder: Path) -> None:
    # A shell that runs the tests in its background has them, and so us, ignore what a terminal would send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Rig(folder).engine("deploy") as engine:
        engine.up(lambda progress: print(f"{progress.resource} {progress.stage} {progress.text}", flush=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
