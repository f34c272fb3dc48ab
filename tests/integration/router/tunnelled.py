"""The tunnel service as a process of its own, for a test to describe machines to, kill and start again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from router.contract import TunnelMachine, TunnelMachines, TunnelState, TunnelsView, TunnelView
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.served import ROOT, until
from tests.sshd import Sshd

PREFIX = "LETTERPRESS_TUNNELS_"


@dataclass
class Tunnels:
    """The tunnel service as a process, and the file that describes its machines."""

    folder: Path
    key: Path
    machines: dict[str, TunnelMachine] = field(default_factory=dict)
    process: Process | None = None
    run: Path = field(init=False)

    def __post_init__(self) -> None:
        self.run = self.folder / "run"

    def describe(self, *machines: TunnelMachine) -> None:
        self.machines = {machine.id: machine for machine in machines}
        self.write(TunnelMachines(machines=list(machines)).model_dump_json())

    def write(self, text: str) -> None:
        draft = self.folder / "draft"
        draft.write_text(text)
        draft.replace(self.folder / "machines.json")

    @property
    def status(self) -> Path:
        return self.folder / "status.json"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def view(self) -> TunnelsView:
        return TunnelsView.model_validate_json(self.status.read_bytes()) if self.status.exists() else TunnelsView()

    def tunnel(self, machine: str) -> TunnelView | None:
        return next((one for one in self.view().tunnels if one.machine == machine), None)

    async def becomes(self, machine: str, state: TunnelState, within_s: float = 30) -> TunnelView:
        """The tunnel, once it is in this state and all its ways are open if that is up."""

        async def so() -> bool:
            found = self.tunnel(machine)
            return bool(found and found.state is state and (state is not TunnelState.UP or self.open(machine)))

        await until(so, f"the tunnel of {machine} is {state}: {self.view()} {self.log}", within_s)
        found = self.tunnel(machine)
        assert found
        return found

    def open(self, machine: str) -> bool:
        """Whether just the workers that are described have their ways."""
        found = self.tunnel(machine)
        assert found
        return {one.worker for one in found.forwards if one.up} == set(self.machines[machine].workers)

    def environment(self) -> dict[str, str]:
        named = {
            "MACHINES_FILE": self.folder / "machines.json",
            "STATUS_FILE": self.status,
            "RUN_DIR": self.run,
            "KEY_FILE": self.key,
        }
        return {**os.environ, **{PREFIX + name: str(value) for name, value in named.items()}}

    async def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "router.tunnels"), cwd=ROOT, env=self.environment(), stdout=log, stderr=log
            )

    async def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(by)
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def serving(folder: Path, key: Path) -> AsyncIterator[Tunnels]:
    here = folder / "t"
    here.mkdir()
    tunnels = Tunnels(here, key)
    tunnels.describe()
    await tunnels.start()
    try:
        yield tunnels
    finally:
        await tunnels.stop()


def port_of(worker: PacedProcess) -> int:
    return int(worker.url.rpartition(":")[2])


def described(server: Sshd, name: str = "m-1", **workers: PacedProcess) -> TunnelMachine:
    ports = {name.replace("_", "-"): port_of(worker) for name, worker in workers.items()}
    server.allow(ports.values())
    return TunnelMachine(
        id=name, host="127.0.0.1", port=server.port, user=server.user, host_key=server.host_key, workers=ports
    )


def socket_of(tunnel: TunnelView, worker: str) -> str:
    return next(one.socket for one in tunnel.forwards if one.worker == worker)
