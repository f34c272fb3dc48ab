"""A machine without hardware: switched on and off, restarted, broken in one way or another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.emulate.hosts import init, pod
from infra.emulate.hosts.namespace import Namespace, NoMachinesError, namespace
from infra.paths import repository_root
from infra.setup.for_tests import find_sshd

BOOTS_WITHIN_S = 60.0
H100 = ("NVIDIA H100 80GB HBM3", 81559)


@dataclass
class TestMachine:
    """`standin` tells its tools what to say: its GPUs (None: no driver), whether its registry refuses."""

    __test__ = False

    network: Namespace
    folder: Path
    disk: Path
    users: list[dict[str, str]]
    standin: dict[str, Any]
    port: int = 22
    packages: str = ""
    """A folder that is its Python package index."""
    is_pod: bool = False
    """A container instead: the worker's image, as `host`."""
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def address(self) -> str:
        return self.network.address

    def start(self) -> None:
        described = {
            "disk": str(self.disk),
            "checkout": str(repository_root()),
            "compiled": str(Path(sys.prefix) / "compiled"),
            "python": str(Path(sys.executable).resolve()),
            "users": self.users,
            "standin": self.standin,
            "port": self.port,
            "packages": self.packages,
        }
        self.specification.write_text(json.dumps(described))
        apart = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--uts")
        first = (pod if self.is_pod else init).__name__
        environment = pod.environment(self.users[0]["key"], self.port) if self.is_pod else dict(os.environ)
        with (self.folder / "console").open("ab") as console:
            self.process = subprocess.Popen(
                [*self.network.within, *apart, sys.executable, "-S", "-m", first, str(self.specification)],
                cwd=repository_root(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOTS_WITHIN_S
        while not self._answers():
            if time.monotonic() > deadline:
                raise NoMachinesError(f"{self.address} does not boot within {BOOTS_WITHIN_S:g} s: {self.console()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """As by pulling the plug."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def console(self) -> str:
        file = self.folder / "console"
        return file.read_text()[-2000:] if file.exists() else ""

    def file(self, path: str) -> Path:
        """A file of the machine as it lies on its disk, if the machine wrote it."""
        for overlaid in ("/usr/local", "/usr/sbin", "/etc", "/var", "/root", "/home", "/srv"):
            if path.startswith(overlaid + "/"):
                return self.disk / "upper" / overlaid.strip("/").replace("/", "-") / path[len(overlaid) + 1 :]
        raise ValueError(path)

    def inside(self, *argv: str) -> str:
        """Run something on the machine, as its owner at its console would."""
        return subprocess.run(
            ["nsenter", "-t", str(self.init_pid), "-m", "-p", "-n", "--", *argv],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    @property
    def init_pid(self) -> int:
        """Of its first process."""
        assert self.process
        left = [self.process.pid]
        while left:
            pid = left.pop()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if os.fsencode(self.specification) in command and b"unshare" not in command:
                return pid
            left += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        raise ProcessLookupError(self.address)

    @property
    def specification(self) -> Path:
        return self.folder / "specification.json"

    def told(self, **what: object) -> None:
        """Change what its tools say from now on."""
        self.standin |= what
        self.file("/etc/standin.json").write_text(json.dumps(self.standin))

    def new_host_key(self) -> None:
        """As a machine that was installed anew at the same address."""
        self.stop()
        key = self.file(f"{pod.VOLUME}/ssh/ssh_host_ed25519_key" if self.is_pod else "/etc/ssh/standin_key")
        for file in (key, key.with_name(f"{key.name}.pub")):
            file.unlink()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.start()

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise NoMachinesError(f"a machine does not start here: {self.console()[-500:]}")
        try:
            socket.create_connection((self.address, self.port), 1).close()
        except OSError:
            return False
        return True


@contextmanager
def machine(
    key: str,
    *,
    user: str = "root",
    password: str = "",
    gpus: tuple[tuple[str, int], ...] | None = (H100,),
    port: int = 22,
    size: str = "",
    packages: str = "",
    is_pod: bool = False,
) -> Iterator[TestMachine]:
    """Running; gone with its disk when the block ends. `key` is a public line that lets its user in.

    Raises NoMachinesError where namespaces or mounts are not allowed, or sshd or nft is missing.
    """
    for program in ("nft", "unshare", "setpriv", "nsenter"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            raise NoMachinesError(f"a machine wants {program} (make setup-test installs it where it may)")
    if find_sshd() is None:
        raise NoMachinesError("a machine wants sshd (make setup-test installs it where it may)")
    with namespace() as network:
        folder = Path(tempfile.mkdtemp(prefix="lp-host-"))
        disk = folder / "disk"
        disk.mkdir()
        if size:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
        users = [{"name": user, "key": key, "password": password}]
        made = TestMachine(network, folder, disk, users, {"gpus": gpus}, port, packages, is_pod)
        try:
            made.start()
            yield made
        finally:
            made.stop()
            if size:
                subprocess.run(["umount", "-l", str(disk)], check=False)
            shutil.rmtree(folder, ignore_errors=True)
