"""`letterpress emulate spheron` as a person has it in a terminal: how it ends, and what it says if it cannot begin."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.clouds import MachineSpec
from infra.clouds.quota import Quota
from infra.clouds.spheron import LIMITS, SpheronCloud
from infra.emulate.spheron import KEY
from infra.paths import repository_root
from tests.ports import free_ports

NAME = "lp-abcdefgh-batch-1-g1"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtleQ letterpress"


def words(port: int) -> list[str]:
    return [sys.executable, "-c", "from infra.cli import main; main()", "emulate", "spheron", "--port", str(port)]


@contextmanager
def emulate(port: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        words(port), cwd=repository_root(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def rent(url: str, folder: Path) -> str:
    """One machine; its address."""
    cloud = SpheronCloud.of({"SPHERON_API_URL": url, "SPHERON_API_KEY": KEY}, Quota(folder / "quota.json", LIMITS))

    async def order() -> str:
        offer = next(each for each in await cloud.offers() if each.price == 0.82)
        return (await cloud.create(MachineSpec(NAME, offer, public_key=PUBLIC_KEY))).address

    return asyncio.run(order())


def networks(address: str) -> str:
    """What this computer has of the machine's own network: the near end of its cable."""
    if address == "127.0.0.1":
        return ""  # of a computer that makes no machines
    near = f"{address.rpartition('.')[0]}.1/24"
    shown = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in shown.splitlines() if near in line)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_with_its_machines_and_the_bill(tmp_path: Path, by: signal.Signals) -> None:
    (port,) = free_ports(1)
    with emulate(port) as process:
        assert process.stdout
        assert any("take-back" in line for line in iter(process.stdout.readline, "")), "its last line"
        address = rent(f"http://127.0.0.1:{port}", tmp_path)
        assert bool(networks(address)) is (address != "127.0.0.1")
        process.send_signal(by)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    assert re.search(rf"{NAME}  \d+ s  \$0\.00", rest), rest
    assert networks(address) == ""
    with socket.create_server(("127.0.0.1", port)):
        pass  # nobody holds it any more


def test_a_port_that_is_anothers_is_said_and_nothing_is_served() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            words(port),
            cwd=repository_root(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert f"port {port} of this computer cannot be listened on: Address already in use" in " ".join(
        done.stderr.split()
    )
    assert "Traceback" not in done.stderr
