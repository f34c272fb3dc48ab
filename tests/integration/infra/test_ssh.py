"""What is promised of a connection, over a real sshd."""

# ruff: noqa: ASYNC110, ASYNC240 - nobody else waits for a test's loop, and what is awaited is elsewhere

from __future__ import annotations

import asyncio
import fcntl
import http.server
import os
import shlex
import signal
import socket
import termios
import threading
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path, PurePosixPath

import pytest

from infra.ssh.connect import connect
from infra.ssh.connection import Connection
from infra.ssh.errors import CommandError, HostKeyChangedError, LoginRefusedError, SshError, UnreachableError
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.ssh.pins import Pins
from infra.ssh.pool import Connections
from infra.ssh.target import Patience, Target
from tests.ports import free_ports
from tests.sshd import Sshd, generate, sshd

MACHINE = "lp-abcdefgh-gpu-1-g1"
AT_ONCE = Patience(0.0, 0.0)


def unheard(_: str) -> None:
    pass


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Sshd]:
    async with sshd(tmp_path / "sshd") as running:
        yield running


@pytest.fixture
def pins(tmp_path: Path) -> Pins:
    return Pins(tmp_path / "stack" / "known_hosts")


def let_in(server: Sshd, folder: Path) -> Target:
    key = ensure_key(folder / "secrets", LOGIN)
    (server.folder / "authorized_keys").write_text(public_line(key, "letterpress") + "\n")
    return Target(MACHINE, server.address, server.port, server.user, key)


@pytest.fixture
def target(server: Sshd, tmp_path: Path) -> Target:
    return let_in(server, tmp_path)


@asynccontextmanager
async def connected(
    target: Target, pins: Pins, patience: Patience = AT_ONCE, progress: Callable[[str], None] = unheard
) -> AsyncIterator[Connection]:
    connection = await connect(target, pins, progress, patience)
    try:
        yield connection
    finally:
        connection.close()


async def test_a_command_gives_what_it_printed_and_is_heard_line_by_line(target: Target, pins: Pins) -> None:
    heard: list[str] = []
    async with connected(target, pins) as connection:
        assert await connection.run("echo one; echo two >&2; cat", "asking", stdin=b"three", on_line=heard.append) == (
            "one\nthree"
        )
    assert sorted(heard) == ["one", "three", "two"]


async def test_no_message_waits_until_the_one_before_was_acknowledged(target: Target, pins: Pins) -> None:
    async with connected(target, pins) as connection:
        wire = connection._transport.sock
        assert isinstance(wire, socket.socket)
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_failed_command_names_the_machine_what_it_was_for_and_its_last_lines(
    target: Target, pins: Pins
) -> None:
    async with connected(target, pins) as connection:
        with pytest.raises(CommandError) as caught:
            await connection.run("seq 40; echo no such thing >&2; exit 3", "looking for it", advice="Look again.")
    said = str(caught.value)
    assert said.startswith(f"{MACHINE} ({target.address}): looking for it failed (status 3)")
    assert "no such thing" in said
    assert said.endswith("Look again.")


async def test_what_a_users_shell_prints_by_itself_is_no_answer(
    server: Sshd, target: Target, pins: Pins, tmp_path: Path
) -> None:
    """bash reads ~/.bashrc for what sshd runs, too; here sshd makes it so for whichever user runs the tests."""
    greeter = tmp_path / "greeter"
    greeter.write_text('#!/bin/sh\necho "Welcome back,"\nprintf "no line\'s end"\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    greeter.chmod(0o755)
    keys = server.folder / "authorized_keys"
    keys.write_text(f'command="{greeter}" {keys.read_text()}')
    content = bytes(range(256)) * 64
    async with connected(target, pins) as connection:
        assert await connection.run("echo one", "asking") == "one\n"
        await connection.write(tmp_path / "file", content)
        assert await connection.read(tmp_path / "file") == content


async def test_a_command_that_takes_too_long_is_ended_over_there(target: Target, pins: Pins, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    async with connected(target, pins) as connection:
        with pytest.raises(CommandError, match="did not end in time"):
            await connection.run(f"echo $$ >{mark}; sleep 600", "sleeping", within_s=1)
    assert not Path(f"/proc/{mark.read_text().strip()}").exists()


async def test_what_a_command_leaves_running_does_not_hold_it_up(target: Target, pins: Pins) -> None:
    async with connected(target, pins) as connection, asyncio.timeout(20):
        assert await connection.run("sleep 30 & echo $!", "starting something") != ""


async def test_a_file_is_whole_with_its_mode_and_comes_back_byte_for_byte(
    target: Target, pins: Pins, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 4096
    there = PurePosixPath(tmp_path) / "there" / "file"
    async with connected(target, pins) as connection:
        await connection.write(there, content, 0o640)
        assert await connection.read(there) == content
        assert await connection.read(there.with_name("other")) is None
    assert Path(there).stat().st_mode & 0o777 == 0o640
    assert [path.name for path in Path(there).parent.iterdir()] == ["file"]


async def test_what_a_file_holds_goes_into_no_log_and_what_a_command_says_does(
    server: Sshd, target: Target, pins: Pins, tmp_path: Path
) -> None:
    there, connections = PurePosixPath(tmp_path) / "token", Connections(pins, tmp_path / "logs")
    connection = await connections.to(target, unheard, AT_ONCE)
    await connection.write(there, b"a-worker-token\n")
    assert await connection.read(there) == b"a-worker-token\n"
    await connection.run("echo said", "asking")
    connections.close()
    kept = (tmp_path / "logs" / f"{MACHINE}.ssh.log").read_text()
    assert "a-worker-token" not in kept
    assert f"# reading {there}" in kept
    assert "said\n" in kept


async def test_what_was_read_of_a_file_is_in_no_message_that_its_reading_failed(
    server: Sshd, target: Target, pins: Pins, tmp_path: Path
) -> None:
    there, connections = tmp_path / "token", Connections(pins, tmp_path / "logs")
    os.mkfifo(there)
    connection = await connections.to(target, unheard, AT_ONCE)
    reading = asyncio.create_task(connection.read(PurePosixPath(there)))
    async with asyncio.timeout(20):
        written = await asyncio.to_thread(there.open, "wb", 0)
        with written:
            written.write(b"half-a-worker-to")
            while (reader := reader_of(there)) is None or unread(written):
                await asyncio.sleep(0.02)
            os.kill(reader, signal.SIGTERM)
            with pytest.raises(CommandError) as caught:
                await reading
    connections.close()
    assert f"reading {there} failed (status 143)" in str(caught.value)
    assert "half-a" not in f"{caught.value} {caught.value.output}"
    assert "half-a" not in (tmp_path / "logs" / f"{MACHINE}.ssh.log").read_text()


def reader_of(pipe: Path) -> int | None:
    """The process that reads a named pipe which we write."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.name != str(os.getpid()) and any(fd.readlink() == pipe for fd in (process / "fd").iterdir()):
                return int(process.name)
    return None


def unread(pipe: FileIO) -> bool:
    """Whether somebody has yet to read what was written into it."""
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0] > 0


async def test_a_server_on_its_loopback_can_be_asked(target: Target, pins: Pins) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as asked:
        threading.Thread(target=asked.serve_forever, daemon=True).start()
        try:
            async with connected(target, pins) as connection:
                answer = await connection.get(asked.server_port, "/nothing-here")
                assert answer is not None
                assert answer[0] == 404
                assert await connection.get(free_ports(1)[0], "/") is None
                assert await connection.run("echo goes on", "asking") == "goes on\n"
        finally:
            asked.shutdown()


async def test_another_host_key_is_refused_before_anything_is_sent(
    server: Sshd, target: Target, pins: Pins, tmp_path: Path
) -> None:
    async with connected(target, pins) as connection:
        assert connection.host_key == server.host_key
    assert pins.get(MACHINE) == server.host_key
    await server.stop()
    generate(server.folder / "other")
    await server.start("other")
    before = server.log.count("Accepted publickey")
    with pytest.raises(HostKeyChangedError) as caught:
        await connect(target, pins, unheard, AT_ONCE)
    assert f"forget-host-key {MACHINE} --stack stack" in str(caught.value)
    assert server.log.count("Accepted publickey") == before
    pins.forget(MACHINE)
    async with connected(target, pins):
        pass


async def test_the_pin_belongs_to_the_machine_and_not_to_its_address(target: Target, pins: Pins) -> None:
    pins.pin("lp-abcdefgh-gpu-1-g0", "ssh-ed25519 AAAA")
    async with connected(target, pins) as connection:
        assert connection.alive
    assert pins.get("lp-abcdefgh-gpu-1-g0") == "ssh-ed25519 AAAA"


async def test_a_machine_that_boots_is_waited_for_and_one_hears_of_it(server: Sshd, target: Target, pins: Pins) -> None:
    await server.stop()
    heard: list[str] = []

    async def boot() -> None:
        while not heard:
            await asyncio.sleep(0.02)
        await server.start()

    booting = asyncio.create_task(boot())
    async with connected(target, pins, Patience(reach_s=60), heard.append) as connection:
        assert connection.alive
    await booting
    assert "connection refused" in heard[0]


async def test_a_key_that_is_not_taken_is_shown_as_the_line_that_is_missing(
    server: Sshd, target: Target, pins: Pins
) -> None:
    (server.folder / "authorized_keys").write_text("")
    with pytest.raises(LoginRefusedError) as caught:
        await connect(target, pins, unheard, AT_ONCE)
    assert public_line(target.key, "letterpress") in str(caught.value)


async def test_nobody_there_says_where_and_how_to_try(target: Target, pins: Pins) -> None:
    with pytest.raises(UnreachableError, match="connection refused"):
        await connect(replace(target, port=free_ports(1)[0]), pins, unheard, AT_ONCE)


async def test_a_key_that_cannot_be_used_is_told_apart_from_one_that_is_refused(
    target: Target, pins: Pins, tmp_path: Path
) -> None:
    (tmp_path / "broken").write_text("nothing")
    for key, said in ((tmp_path / "none", "there is no such SSH key"), (tmp_path / "broken", "cannot be used")):
        with pytest.raises(SshError, match=said):
            await connect(replace(target, key=key), pins, unheard, AT_ONCE)


async def test_a_connection_that_is_cut_is_said_and_the_next_call_makes_another(
    server: Sshd, target: Target, pins: Pins, tmp_path: Path
) -> None:
    pool = Connections(pins, tmp_path / "logs")
    first = await pool.to(target, unheard, AT_ONCE)
    assert await pool.to(target, unheard, AT_ONCE) is first
    running = asyncio.create_task(first.run("sleep 60", "sleeping"))
    while "Accepted publickey" not in server.log:
        await asyncio.sleep(0.02)
    server.cut()
    with pytest.raises(UnreachableError, match="was lost"):
        await running
    second = await pool.to(target, unheard, AT_ONCE)
    assert await second.run("echo back", "asking") == "back\n"
    pool.close()
    assert "back" in (tmp_path / "logs" / f"{MACHINE}.ssh.log").read_text()


async def test_many_commands_run_side_by_side(target: Target, pins: Pins) -> None:
    """Ten that wait for each other: one after the other they would never end."""
    async with connected(target, pins) as connection, asyncio.timeout(60):
        folder = (await connection.run("mktemp -d", "making a folder")).strip()
        meet = f"touch {folder}/$$; until [ $(ls {folder} | wc -l) -ge 8 ]; do sleep 0.05; done"
        await asyncio.gather(*(connection.run(meet, "meeting", within_s=50) for _ in range(8)))
        await connection.run(f"rm -r {shlex.quote(folder)}", "tidying up")
