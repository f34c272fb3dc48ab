"""Tunnels through a real sshd: one connection a machine, pinned keys, cuts and freezes noticed, nobody disturbed."""

# ruff: noqa: ASYNC240 - nobody else waits for a test's loop

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import httpx
import pytest

from router.contract import (
    SOCKET_PATH_MAX,
    TUNNEL_SOCKET_MAX,
    TunnelMachine,
    TunnelState,
)
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.hosts import namespace
from tests.integration.router.served import ROOT, until
from tests.integration.router.tunnelled import Tunnels, described, port_of, serving, socket_of
from tests.sshd import Sshd, generate, sshd


async def alive(socket: str) -> bool:
    transport = httpx.AsyncHTTPTransport(uds=socket)
    async with httpx.AsyncClient(base_url="http://worker", transport=transport, timeout=5, trust_env=False) as http:
        try:
            return (await http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False


def reaches(socket: str) -> Callable[[], Awaitable[bool]]:
    return lambda: alive(socket)


async def test_two_workers_are_reached_through_one_connection(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess, b: PacedProcess
) -> None:
    tunnels.describe(described(machine, w_1=a, w_2=b))
    tunnel = await tunnels.becomes("m-1", TunnelState.UP)
    for worker in ("w-1", "w-2"):
        assert await alive(socket_of(tunnel, worker))
        mode = Path(socket_of(tunnel, worker)).stat().st_mode
        assert mode & 0o077 == 0, "the way to a worker is the router's alone"
    assert machine.log.count("Accepted publickey") == 1


async def test_the_longest_run_directory_holds_the_longest_names_and_a_longer_one_is_refused(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess
) -> None:
    await tunnels.stop()
    left = SOCKET_PATH_MAX - 1 - TUNNEL_SOCKET_MAX - len(str(tunnels.run))
    tunnels.run = tunnels.run.with_name("run" + left * "r")
    longest, digested = "w" * 24, "w" * 40
    ports = {longest: port_of(a), digested: port_of(a)}
    tunnels.describe(described(machine, a=a).model_copy(update={"workers": ports}))
    await tunnels.start()
    tunnel = await tunnels.becomes("m-1", TunnelState.UP)
    assert len(socket_of(tunnel, longest)) == SOCKET_PATH_MAX
    for worker in ports:
        assert await alive(socket_of(tunnel, worker))

    await tunnels.stop()
    tunnels.run = tunnels.run.with_name(tunnels.run.name + "r")
    await tunnels.start()
    assert tunnels.process
    async with asyncio.timeout(30):
        assert await tunnels.process.wait() != 0
    assert "r is 1 bytes too long for the sockets" in tunnels.log


async def test_the_key_may_do_nothing_but_forward_to_the_workers(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess, b: PacedProcess
) -> None:
    only_a = described(machine, w_1=a)
    tunnels.describe(only_a)
    await tunnels.becomes("m-1", TunnelState.UP)
    tunnels.describe(only_a.model_copy(update={"workers": {"w-2": port_of(b)}}))
    tunnel = await tunnels.becomes("m-1", TunnelState.UP)
    assert not await alive(socket_of(tunnel, "w-2")), "a port that is not in its line"


async def test_a_cut_connection_comes_back_by_itself(tunnels: Tunnels, machine: Sshd, a: PacedProcess) -> None:
    tunnels.describe(described(machine, w_1=a))
    tunnel = await tunnels.becomes("m-1", TunnelState.UP)
    machine.cut()
    await tunnels.becomes("m-1", TunnelState.WAITING)
    await tunnels.becomes("m-1", TunnelState.UP)
    await until(reaches(socket_of(tunnel, "w-1")), "the worker is reached again")


async def test_a_killed_ssh_comes_back_by_itself(tunnels: Tunnels, machine: Sshd, a: PacedProcess) -> None:
    tunnels.describe(described(machine, w_1=a))
    before = await tunnels.becomes("m-1", TunnelState.UP)
    assert tunnels.process
    (ssh,) = Path(f"/proc/{tunnels.process.pid}/task/{tunnels.process.pid}/children").read_text().split()
    os.kill(int(ssh), signal.SIGKILL)

    async def again() -> bool:
        found = tunnels.tunnel("m-1")
        return bool(found and found.state is TunnelState.UP and found.since > before.since)

    await until(again, "the connection stands again")
    assert await alive(socket_of(before, "w-1"))


async def test_a_frozen_machine_is_noticed_in_under_ten_seconds(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess
) -> None:
    tunnels.describe(described(machine, w_1=a))
    await tunnels.becomes("m-1", TunnelState.UP)
    machine.freeze()
    began = monotonic()
    try:
        found = await tunnels.becomes("m-1", TunnelState.WAITING, within_s=20)
        took = monotonic() - began
    finally:
        machine.thaw()
    assert "m-1 fell silent" in found.reason
    assert took < 10, "3 missed answers, two seconds apart: the promise, with a margin for a busy machine"
    await tunnels.becomes("m-1", TunnelState.UP)


async def test_a_changed_host_key_is_refused_and_explained_until_the_machine_is_described_anew(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess
) -> None:
    old = described(machine, w_1=a)
    tunnels.describe(old)
    tunnel = await tunnels.becomes("m-1", TunnelState.UP)
    await machine.stop()
    new_key = generate(machine.folder / "other")
    await machine.start("other")
    found = await tunnels.becomes("m-1", TunnelState.REFUSED)
    assert "the host key of m-1 is not the one that was pinned" in found.reason
    assert "describe it with its new key" in found.reason
    assert not await alive(socket_of(tunnel, "w-1"))
    tunnels.describe(old.model_copy(update={"host_key": new_key}))
    await tunnels.becomes("m-1", TunnelState.UP)
    assert await alive(socket_of(tunnel, "w-1"))


async def test_a_machines_address_used_again_by_another_does_not_make_it_that_machine(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess
) -> None:
    one = described(machine, "m-old", w_1=a)
    impostor = one.model_copy(update={"id": "m-new", "host_key": generate(machine.folder / "wanted")})
    tunnels.describe(one, impostor.model_copy(update={"workers": {"w-2": 1}}))
    await tunnels.becomes("m-old", TunnelState.UP)
    await tunnels.becomes("m-new", TunnelState.REFUSED)


async def test_machines_and_workers_come_and_go_without_disturbing_others(
    tunnels: Tunnels, machine: Sshd, folder: Path, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(Pace(step_s=0.2, heartbeat_s=0.2))
    first = described(machine, w_1=a)
    tunnels.describe(first)
    tunnel = await tunnels.becomes("m-1", TunnelState.UP)
    socket = socket_of(tunnel, "w-1")
    transport = httpx.AsyncHTTPTransport(uds=socket)
    headers = {"Authorization": f"Bearer {a.token}"}
    generation = {"prompt": "a press", "width": 256, "height": 256, "seed": 1, "steps": 40}
    async with (
        sshd(folder / "n") as other,
        httpx.AsyncClient(base_url="http://w", transport=transport, headers=headers, timeout=60) as http,
        http.stream("PUT", "/generations/job_x.1", json=generation) as stream,
    ):
        lines = stream.aiter_lines()
        assert "accepted" in await anext(lines)
        public = (machine.client_key.with_suffix(".pub")).read_text()
        both = described(machine, w_1=a, w_2=b)
        other.allow([port_of(b)])
        (other.folder / "authorized_keys").write_text(f"restrict,port-forwarding {public}")
        beside = both.model_copy(
            update={"id": "m-2", "port": other.port, "host_key": other.host_key, "workers": {"w-3": port_of(b)}}
        )
        tunnels.describe(both, beside)
        added = await tunnels.becomes("m-1", TunnelState.UP)
        assert (await tunnels.becomes("m-2", TunnelState.UP)).forwards
        assert added.since == tunnel.since, "the connection is the same"
        tunnels.describe(first)

        async def gone() -> bool:
            return tunnels.tunnel("m-2") is None and not Path(socket_of(added, "w-2")).exists()

        await until(gone, "what is no longer described is no longer connected")
        assert tunnels.tunnel("m-1") == tunnel
        finished = [line async for line in lines][-1]
    assert "finished" in finished, "the stream that was open all the while"


async def test_a_socket_that_cannot_be_opened_is_named_while_the_others_are_open_and_tried_again(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess, b: PacedProcess
) -> None:
    taken = tunnels.folder / "run" / "w" / "w-2"
    taken.mkdir(parents=True)
    both = described(machine, w_1=a, w_2=b)
    tunnels.describe(both)

    async def told() -> bool:
        found = tunnels.tunnel("m-1")
        return bool(found and any(one.reason for one in found.forwards))

    await until(told, "the trouble is told")
    tunnel = tunnels.tunnel("m-1")
    assert tunnel
    good, bad = tunnel.forwards
    assert (good.worker, good.up, bad.worker, bad.up) == ("w-1", True, "w-2", False)
    assert f"the socket {taken} cannot be opened" in bad.reason
    assert await alive(good.socket)
    taken.rmdir()
    again = await tunnels.becomes("m-1", TunnelState.UP, within_s=60)
    assert again.since == tunnel.since, "on the same connection"
    assert await alive(bad.socket)


async def test_a_second_service_does_not_start_and_a_killed_ones_connections_are_ended(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess
) -> None:
    tunnels.describe(described(machine, w_1=a))
    tunnel = await tunnels.becomes("m-1", TunnelState.UP)
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router.tunnels"),
        cwd=ROOT,
        env=tunnels.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(second.communicate(), 30)
    assert second.returncode == 69
    assert b"another tunnel service has" in said
    await tunnels.stop(signal.SIGKILL)
    assert await alive(socket_of(tunnel, "w-1")), "ssh itself goes on"
    tunnels.status.unlink()
    await tunnels.start()
    again = await tunnels.becomes("m-1", TunnelState.UP)
    assert again.since > tunnel.since
    assert len([pid for pid in machine.connections() if _is_alive(pid)]) <= 2, "one connection, in two processes"
    assert await tunnels.stop() == 0
    assert not await alive(socket_of(tunnel, "w-1"))


def _is_alive(pid: int) -> bool:
    try:
        return " Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_a_description_that_cannot_be_followed_changes_nothing_and_is_told(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess
) -> None:
    tunnels.describe(described(machine, w_1=a))
    tunnel = await tunnels.becomes("m-1", TunnelState.UP)
    for text, said in (
        ("{", "cannot be followed, and nothing is changed"),
        ('{"machines": [{"id": "m-1"}]}', "machines.0.host: Field required"),
    ):
        tunnels.write(text)

        async def told(said: str = said) -> bool:
            return said in tunnels.view().trouble

        await until(told, f"the trouble is told: {said}")
        assert await alive(socket_of(tunnel, "w-1"))
    tunnels.describe(described(machine, w_1=a))

    async def untroubled() -> bool:
        return tunnels.view().trouble == ""

    await until(untroubled, "the trouble is over")
    assert tunnels.tunnel("m-1") == tunnel


async def test_a_worker_on_a_loopback_elsewhere_is_reached_and_a_pulled_cable_is_noticed_in_under_ten_seconds(
    folder: Path,
) -> None:
    with namespace() as elsewhere:
        async with sshd(folder / "m", elsewhere.address, elsewhere.within) as server:
            serve = (*elsewhere.within, sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "8000")
            there = await asyncio.create_subprocess_exec(*serve, cwd=folder, stderr=subprocess.DEVNULL)
            try:
                async with serving(folder, server.client_key) as tunnels:
                    server.allow([8000])
                    machine = TunnelMachine(
                        id="m-1",
                        host=elsewhere.address,
                        port=server.port,
                        user=server.user,
                        host_key=server.host_key,
                        workers={"w-1": 8000},
                    )
                    tunnels.describe(machine)
                    tunnel = await tunnels.becomes("m-1", TunnelState.UP)
                    transport = httpx.AsyncHTTPTransport(uds=socket_of(tunnel, "w-1"))
                    async with httpx.AsyncClient(base_url="http://w", transport=transport, trust_env=False) as http:

                        async def serves() -> bool:
                            try:
                                return (await http.get("/")).status_code == 200
                            except httpx.TransportError:
                                return False

                        await until(serves, "what listens on the other loopback answers")
                    with pytest.raises(OSError, match=r"refused|Connect call failed"):
                        await asyncio.open_connection(elsewhere.address, 8000)
                    elsewhere.pull_the_cable()
                    began = monotonic()
                    lost = await tunnels.becomes("m-1", TunnelState.WAITING, within_s=20)
                    assert monotonic() - began < 10
                    assert "m-1" in lost.reason
                    elsewhere.put_it_back()
                    await tunnels.becomes("m-1", TunnelState.UP, within_s=60)
            finally:
                there.kill()
                await there.wait()
