"""A stack of rented machines for tests of the Pulumi layer: the real engine and provider, an emulated Spheron.

Machines alone are declared: what runs on them is other tests'. `python -m tests.integration.infra.rented_rig FOLDER`
brings them up, in a process that a test can kill.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from infra.emulate.server import Emulator
from infra.emulate.spheron import KEY
from infra.engine import Engine, EngineSettings, operate
from infra.engine.events import Outcome
from infra.engine.guard import orphans
from infra.hosts.processes import command as command_of
from infra.paths import StackPaths, repository_root
from infra.planning.planner import Plan, plan
from infra.planning.program import Declared, Program, Programs
from infra.provider.resource import Kind
from infra.stack import parse
from tests.integration.infra.engine_rig import pulumi_engine
from tests.waiting import eventually

NAME = "hired"
DESCRIPTION = """\
name: hired
cloud: spheron
model: tiny
pools:
  interactive: {machines: 1, gpus: [H100-PCIe, H100-SXM], tier: fp8, first_port: 9101}
  batch: {machines: 2, market: spot, gpus: [A100-SXM-80GB, A100-PCIe-80GB], fallback: on_demand, first_port: 9111}
"""
PROGRAMS = Programs(Program(("true",), "1"), Program(("true",), "1"))
MACHINES = ("interactive-1", "batch-1", "batch-2")


def environment(url: str) -> dict[str, str]:
    return {"SPHERON_API_URL": url, "SPHERON_API_KEY": KEY}


def machines(decided: Plan) -> list[Declared]:
    """Without what runs on them."""
    return [each for each in decided.declared if each.kind is Kind.MACHINE]


@dataclass
class Rig:
    """One stack in `folder`, on the account of `emulator`."""

    folder: Path
    emulator: Emulator
    said: list[str] = field(default_factory=list)

    @property
    def paths(self) -> StackPaths:
        return StackPaths.of(NAME, self.folder / "home")

    def plan(self) -> Plan:
        description = parse((self.folder / "stack.yaml").read_text(), "stack.yaml", self.folder)
        return asyncio.run(plan(description, self.paths, PROGRAMS))

    def up(self) -> Outcome:
        decided = self.plan()
        with self.engine(decided) as engine:
            decided.keep(self.paths)
            return engine.up(lambda progress: self.said.append(progress.text))

    def destroy(self) -> Outcome:
        with self.engine(None) as engine:
            return engine.destroy(lambda progress: self.said.append(progress.text))

    @contextmanager
    def engine(self, decided: Plan | None) -> Iterator[Engine]:
        declared = machines(decided) if decided else []
        settings = EngineSettings(pulumi_engine(), f"file://{self.paths.pulumi}")
        with operate(NAME, self.paths, declared, settings, "test") as engine:
            yield engine

    @contextmanager
    def running(self, verb: str, reached: Callable[[], object]) -> Iterator[subprocess.Popen[bytes]]:
        """`up` or `destroy` in a process of its own, once it has come so far, or ended."""
        with subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.folder), verb],
            cwd=repository_root(),
            env={**os.environ, **environment(self.emulator.url)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as command:
            try:
                eventually(lambda: reached() or command.poll() is not None, 120, f"{verb} comes so far", 0.01)
                yield command
            finally:
                command.kill()

    @contextmanager
    def deploying(self) -> Iterator[subprocess.Popen[bytes]]:
        """A deploy in a process of its own, once an order is on its way."""
        asked = self.asked("createDeployment")
        with self.running("up", lambda: self.asked("createDeployment") > asked) as deploy:
            yield deploy

    def asked(self, operation: str) -> int:
        """How often so far."""
        return self.emulator.asked.count(operation)

    def answered(self, operation: str) -> int:
        return sum(each == operation for _, each, _ in list(self.emulator.log))

    def kill(self, victim: str, command: subprocess.Popen[bytes]) -> None:
        """`provider`, `engine` or the `command` itself, with SIGKILL; one that has ended is no error."""
        if victim == "command":
            command.kill()
        for each in orphans(self.paths.root):
            provider = "pulumi-resource-letterpress" in command_of(each.pid)
            if (victim == "provider" and provider) or (victim == "engine" and each.pid == each.session):
                with suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)

    def alive(self) -> list[str]:
        """What the account pays for now, by the machines' names in the stack."""
        return sorted(rental.name.split("-", 2)[2].rpartition("-g")[0] for rental in self.emulator.account.alive())


def main(folder: Path, verb: str, url: str) -> None:
    rig = Rig(folder, Emulator(None, url))  # type: ignore[arg-type] # only its address is used here
    rig.up() if verb == "up" else rig.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], os.environ["SPHERON_API_URL"])
