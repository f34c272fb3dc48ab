"""A real sshd on loopback for tests, with a host key and an authorized key of its own, run by who runs the tests."""

# ruff: noqa: ASYNC240 - nobody else waits for a test's loop

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.setup.for_tests import find_sshd
from router.contract import forward_only
from tests.ports import free_ports

START_S = 30
CONFIG = """\
ListenAddress {address}:{port}
HostKey {folder}/{host_key}
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
LogLevel VERBOSE
"""


def generate(path: Path) -> str:
    """A new Ed25519 key in `path`, and `path`.pub; the public one as known_hosts has it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


@dataclass
class Sshd:
    """`client_key` is the private key that it accepts, for forwards to the ports that were `allow`ed."""

    folder: Path
    port: int
    host_key: str
    client_key: Path
    address: str = "127.0.0.1"
    within: tuple[str, ...] = ()
    """A command that it is started by: `ip netns exec NAME`."""
    process: Process | None = None

    @property
    def user(self) -> str:
        return pwd.getpwuid(os.getuid()).pw_name

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def allow(self, ports: Iterable[int]) -> None:
        public = self.client_key.with_suffix(".pub").read_text()
        (self.folder / "authorized_keys").write_text(forward_only(public, ports) + "\n")

    async def start(self, host_key: str = "host") -> None:
        config = self.folder / "config"
        config.write_text(CONFIG.format(address=self.address, port=self.port, folder=self.folder, host_key=host_key))
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*self.within, str(find_sshd()), "-D", "-e", "-f", str(config)), stdin=DEVNULL, stdout=log, stderr=log
            )
        async with asyncio.timeout(START_S):
            while not await self._listens():
                if self.process.returncode is not None:
                    raise RuntimeError(f"sshd ended with {self.process.returncode}:\n{self.log}")
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """It, and every connection of it, as a machine that loses its power."""
        if self.process is None:
            return
        for pid in self.connections():
            _signal(pid, signal.SIGKILL)
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    def cut(self) -> None:
        """End the connections; new ones are taken."""
        for pid in self.connections():
            _signal(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """No byte comes from it any more, and no connection breaks: as a machine whose kernel hangs."""
        assert self.process
        for pid in (self.process.pid, *self.connections()):
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        for pid in (self.process.pid, *self.connections()):
            _signal(pid, signal.SIGCONT)

    def connections(self) -> list[int]:
        """The processes that serve connections."""
        assert self.process
        found: list[int] = []
        left = [self.process.pid]
        while left:
            parent = left.pop()
            try:
                children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            except FileNotFoundError:
                continue
            left.extend(int(pid) for pid in children)
            found.extend(int(pid) for pid in children)
        return found

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self.address, self.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@asynccontextmanager
async def sshd(folder: Path, address: str = "127.0.0.1", within: tuple[str, ...] = ()) -> AsyncIterator[Sshd]:
    """Listening; gone when the block ends. Skips the test where it is not installed."""
    if find_sshd() is None:
        pytest.skip("sshd is not installed (make setup-test installs it where it may)")
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it drops its privileges
    host_key = generate(folder / "host")
    generate(folder / "client")
    (port,) = free_ports(1)
    server = Sshd(folder, port, host_key, folder / "client", address, within)
    server.allow(())
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
