"""The local host and the processes that it keeps, for real."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path, PurePath

import pytest

from infra.hosts import HostError, Listen, PortInUseError, Unit, UnitState
from infra.hosts.local import LocalHost
from infra.hosts.logs import ROTATE_AT_BYTES
from infra.hosts.processes import process
from tests.integration.infra.nobody import nobody
from tests.integration.infra.sleepers import (
    environment,
    files,
    mark,
    parent,
    sleeper,
    sleeping,
    status,
    stranger,
    stubborn,
    until,
)
from tests.ports import free_ports

ENSURE = """
import asyncio, sys
from pathlib import Path
from infra.hosts import Unit
from infra.hosts.local import LocalHost

root, name, *argv = sys.argv[1:]
host = LocalHost("there", Path(root) / "host", Path(root) / "logs")
print("ready", flush=True)
asyncio.run(host.ensure(Unit(name, tuple(argv)), lambda stage: None))
"""
"""A command of its own that wants a unit."""


def silent(stage: str) -> None:
    """Nobody follows."""


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[LocalHost]:
    host = LocalHost("here", tmp_path / "host", tmp_path / "logs", first_moment=0.05)
    yield host
    for unit in await host.units():
        await host.remove(unit, silent)


def command(host: LocalHost, unit: Unit) -> subprocess.Popen[bytes]:
    """Another process that ensures the same unit on the same host; it has imported all it needs."""
    argv = [sys.executable, "-c", ENSURE, str(host.root.parent), unit.name, *unit.argv]
    started = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert started.stdout
    assert started.stdout.readline() == b"ready\n"
    return started


def finish(*commands: subprocess.Popen[bytes]) -> list[int]:
    codes = [command.wait(60) for command in commands]
    for command in commands:
        assert command.stdout
        command.stdout.close()
    return codes


async def test_a_unit_outlives_the_command_in_a_session_of_its_own(host: LocalHost) -> None:
    unit = sleeper(mark())
    assert finish(command(host, unit)) == [0]
    status = await host.observe(unit.name)
    assert status.state is UnitState.RUNNING
    assert status.pid is not None
    assert sleeping(unit.argv[1]) == [status.pid]
    assert os.getsid(status.pid) == status.pid


async def test_what_runs_as_described_is_adopted(host: LocalHost) -> None:
    unit = sleeper(mark())
    assert await host.ensure(unit, silent) == await host.ensure(unit, silent)


async def test_what_runs_otherwise_is_replaced(host: LocalHost) -> None:
    before, after = sleeper(mark()), sleeper(mark())
    await host.ensure(before, silent)
    status = await host.ensure(after, silent)
    assert status.fingerprint == after.fingerprint
    assert (len(sleeping(before.argv[1])), sleeping(after.argv[1])) == (0, [status.pid])


async def test_a_changed_configuration_is_reloaded_without_a_restart(host: LocalHost) -> None:
    script = "trap 'echo reloaded' HUP; echo up; while :; do sleep 0.05; done"
    unit = Unit("server", ("sh", "-c", script), config="one", reload_signal="SIGHUP")
    first = await host.ensure(unit, silent)
    await until(lambda: "up" in (host.logs / "server.log").read_text())
    second = await host.ensure(replace(unit, config="two"), silent)
    await until(lambda: "reloaded" in (host.logs / "server.log").read_text())
    third = await host.ensure(replace(unit, config="two"), silent)
    assert first == second == third
    assert (host.logs / "server.log").read_text().count("reloaded") == 1


async def test_a_changed_configuration_restarts_a_unit_that_cannot_reload(host: LocalHost) -> None:
    unit = sleeper(mark())
    first = await host.ensure(replace(unit, config="one"), silent)
    second = await host.ensure(replace(unit, config="two"), silent)
    assert first.pid != second.pid


async def test_removing_ends_all_processes_of_the_unit_and_only_them(host: LocalHost) -> None:
    ours, other = mark(), mark()
    await host.ensure(parent(ours), silent)
    await host.ensure(sleeper(other, "bystander"), silent)
    await until(lambda: len(sleeping(ours)) == 3)
    await host.remove("parent", silent)
    assert (len(sleeping(ours)), len(sleeping(other))) == (0, 1)
    assert set(await host.units()) == {"bystander"}


async def test_removing_what_is_gone_or_never_was_is_success(host: LocalHost) -> None:
    await host.remove("nothing", silent)
    await host.ensure(sleeper(mark()), silent)
    await host.remove("sleeper", silent)
    await host.remove("sleeper", silent)
    assert (await host.observe("sleeper")).state is UnitState.STOPPED


async def test_a_unit_that_will_not_stop_is_killed_after_its_grace(host: LocalHost) -> None:
    unit = stubborn(mark(), grace=0.2)
    status = await host.ensure(unit, silent)
    await until(lambda: "deaf" in (host.logs / "stubborn.log").read_text())
    await host.remove("stubborn", silent)
    assert status.pid is not None
    assert process(status.pid) is None


async def test_a_killed_unit_is_seen_as_stopped_and_started_again_alone(host: LocalHost) -> None:
    victim, other = sleeper(mark(), "victim"), sleeper(mark(), "other")
    first, untouched = await host.ensure(victim, silent), await host.ensure(other, silent)
    assert first.pid
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: not sleeping(victim.argv[1]))
    assert (await host.observe("victim")).state is UnitState.STOPPED
    second = await host.ensure(victim, silent)
    assert sleeping(victim.argv[1]) == [second.pid]
    assert await host.ensure(other, silent) == untouched


async def test_children_that_outlive_their_main_process_are_orphans_until_the_unit_is_repaired(host: LocalHost) -> None:
    marked = mark()
    first = await host.ensure(parent(marked), silent)
    await until(lambda: len(sleeping(marked)) == 3)
    assert first.pid
    orphans = set(sleeping(marked)) - {first.pid}
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: set(sleeping(marked)) == orphans)
    assert (await host.observe("parent")).state is UnitState.ORPHANED
    second = await host.ensure(parent(marked), silent)
    assert second.state is UnitState.RUNNING
    assert not orphans & set(sleeping(marked))


async def test_a_record_whose_pid_was_given_to_a_stranger_is_a_stopped_unit(host: LocalHost) -> None:
    unit = sleeper(mark())
    first = await host.ensure(unit, silent)
    assert first.pid
    record = host.root / "units" / "sleeper.json"
    honest = record.read_text()
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: not sleeping(unit.argv[1]))
    with stranger() as other:
        record.write_text(honest.replace(f'"pid": {first.pid}', f'"pid": {other.pid}'))
        assert (await host.observe("sleeper")).state is UnitState.STOPPED
        second = await host.ensure(unit, silent)
        await host.remove("sleeper", silent)
        assert second.pid not in (None, first.pid, other.pid)
        assert other.poll() is None


async def test_a_stranger_under_the_recorded_pid_is_never_ended_even_if_the_file_is_locked(host: LocalHost) -> None:
    first = await host.ensure(sleeper(mark()), silent)
    record = host.root / "units" / "sleeper.json"
    honest = record.read_text()
    with stranger() as other:
        # The lock is the living unit's, the words are of another: as if the number had been given out again.
        record.write_text(honest.replace(f'"pid": {first.pid}', f'"pid": {other.pid}'))
        assert (await host.observe("sleeper")).state is UnitState.ORPHANED
        with pytest.raises(HostError, match=rf"process {first.pid} \(sleep .*does not belong to it"):
            await host.ensure(sleeper(mark()), silent)
        assert other.poll() is None
    record.write_text(honest)


async def test_a_record_of_another_boot_is_a_stopped_unit(host: LocalHost) -> None:
    await host.ensure(sleeper(mark()), silent)
    record = host.root / "units" / "sleeper.json"
    honest = record.read_text()
    record.write_text(re.sub(r'"boot_id": "[^"]+"', '"boot_id": "another"', honest))
    assert (await host.observe("sleeper")).state is UnitState.STOPPED
    record.write_text(honest)


async def test_a_taken_port_is_an_error_that_names_address_holder_and_setting(host: LocalHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        unit = replace(sleeper(mark()), listens=(Listen("127.0.0.1", port, "router.edge.port"),))
        with pytest.raises(PortInUseError) as raised:
            await host.ensure(unit, silent)
    for word in (f"127.0.0.1:{port}", f"process {os.getpid()} ", "`router.edge.port`", "sleeper"):
        assert word in str(raised.value)
    assert not sleeping(unit.argv[1])


async def test_a_taken_port_in_the_new_description_leaves_the_running_unit_alone(host: LocalHost) -> None:
    running = sleeper(mark())
    before = await host.ensure(running, silent)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listens = (Listen("127.0.0.1", taken.getsockname()[1], "router.edge.port"),)
        with pytest.raises(PortInUseError):
            await host.ensure(replace(running, listens=listens), silent)
    assert await host.observe("sleeper") == before


async def test_a_unit_is_replaced_on_the_port_that_it_holds_itself(host: LocalHost) -> None:
    (port,) = free_ports(1)
    serve = (
        f"import socket,time; s=socket.create_server(('127.0.0.1',{port})); print('up',flush=True); time.sleep(86400)"
    )
    unit = Unit("server", (sys.executable, "-c", serve), listens=(Listen("127.0.0.1", port, "x"),))
    first = await host.ensure(unit, silent)
    await until(lambda: "up" in (host.logs / "server.log").read_text())
    second = await host.ensure(replace(unit, env={"A": "1"}), silent)
    assert first.pid != second.pid


async def test_an_address_of_another_machine_is_an_error_that_says_so(host: LocalHost) -> None:
    unit = replace(sleeper(mark()), listens=(Listen("192.0.2.1", 8080, "router.edge.host"),))
    with pytest.raises(HostError, match=r"192\.0\.2\.1 is not an address of this machine; change `router\.edge\.host`"):
        await host.ensure(unit, silent)


async def test_a_program_that_is_missing_is_named(host: LocalHost) -> None:
    with pytest.raises(HostError, match="no-such-program: No such file or directory"):
        await host.ensure(Unit("a", ("no-such-program",)), silent)


async def test_a_unit_that_dies_at_once_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    host = LocalHost("here", tmp_path / "host", tmp_path / "logs", first_moment=30)
    with pytest.raises(HostError, match=r"here: broken ended as soon as(?s:.*)out of luck"):
        await host.ensure(Unit("broken", ("sh", "-c", "echo out of luck >&2; exit 3")), silent)


async def test_commands_at_the_same_time_start_a_unit_once(host: LocalHost) -> None:
    unit = sleeper(mark())
    assert finish(*[command(host, unit) for _ in range(4)]) == [0] * 4
    assert sleeping(unit.argv[1]) == [(await host.observe(unit.name)).pid]


async def killed_at_any_moment(host: LocalHost, seed: int) -> AsyncIterator[Unit]:
    """Units, each of which a command was about to start when it was killed."""
    drawn = random.Random(seed)
    for _ in range(12):
        unit = sleeper(mark())
        dying = command(host, unit)
        await asyncio.sleep(drawn.uniform(0, 0.15))  # the moment of its death, not a wait for anything
        dying.kill()
        finish(dying)
        yield unit


async def test_a_command_killed_at_any_moment_leaves_nothing_twice(host: LocalHost) -> None:
    async for unit in killed_at_any_moment(host, 7):
        status = await host.ensure(unit, silent)
        assert sleeping(unit.argv[1]) == [status.pid]


async def test_removing_after_a_command_was_killed_in_mid_launch_leaves_nothing(host: LocalHost) -> None:
    async for unit in killed_at_any_moment(host, 8):
        await host.remove(unit.name, silent)
        assert sleeping(unit.argv[1]) == []
        assert await host.units() == {}


async def test_units_of_the_same_name_on_two_hosts_are_strangers(host: LocalHost, tmp_path: Path) -> None:
    other = LocalHost("other", tmp_path / "other", tmp_path / "other-logs", first_moment=0.05)
    ours, theirs = sleeper(mark()), sleeper(mark())
    await host.ensure(ours, silent)
    await other.ensure(theirs, silent)
    await host.remove("sleeper", silent)
    assert len(sleeping(theirs.argv[1])) == 1
    await other.remove("sleeper", silent)


async def test_a_unit_gets_its_environment_and_none_of_the_commands_secrets(
    host: LocalHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "not for you")
    monkeypatch.setenv("LETTERPRESS_WORKER_PORT", "1")
    monkeypatch.setenv("HF_HOME", "/models")
    status = await host.ensure(replace(sleeper(mark()), env={"MODEL": "tiny"}), silent)
    pairs = environment(status.pid)
    assert {b"MODEL=tiny", b"HF_HOME=/models", b"PATH=" + os.environb[b"PATH"]} <= set(pairs)
    assert not [pair for pair in pairs if pair.startswith((b"PULUMI", b"LETTERPRESS"))]


async def test_a_unit_begins_with_default_signals_a_private_umask_and_no_files_but_its_own(host: LocalHost) -> None:
    unit = await host.ensure(sleeper(mark()), silent)
    found = status(unit.pid)
    # Signals 32 and 33 are the C library's own: whoever starts us by posix_spawn leaves them ignored.
    ignored = int(found["SigIgn"], 16) & ~(0b11 << 31)
    assert (ignored, found["SigBlk"], found["Umask"]) == (0, "0" * 16, "0077")
    assert files(unit.pid) == {"/dev/null", str(host.logs / "sleeper.log"), str(host.root / "units" / "sleeper.json")}


async def test_a_long_log_is_set_aside_when_its_unit_starts(host: LocalHost) -> None:
    host.logs.mkdir()
    (host.logs / "sleeper.log").write_bytes(b"x" * (ROTATE_AT_BYTES + 1))
    (host.logs / "sleeper.access.log").write_bytes(b"short")
    await host.ensure(sleeper(mark()), silent)
    sizes = {log.name: log.stat().st_size for log in host.logs.iterdir()}
    assert sizes == {"sleeper.log": 0, "sleeper.log.1": ROTATE_AT_BYTES + 1, "sleeper.access.log": 5}


async def test_the_last_lines_of_a_unit_can_be_read_after_it_is_gone(host: LocalHost) -> None:
    unit = Unit("talker", ("sh", "-c", "echo one; echo two >&2; echo three; exec sleep 86400"))
    await host.ensure(unit, silent)
    await until(lambda: "three" in (host.logs / "talker.log").read_text())
    await host.remove("talker", silent)
    assert await host.tail("talker", 2) == "two\nthree"


async def test_a_file_is_put_in_place_whole_and_for_its_owner_alone(host: LocalHost) -> None:
    await host.write(PurePath("a/b.conf"), b"one")
    await host.write(PurePath("a/b.conf"), b"two")
    assert (host.root / "a/b.conf").read_bytes() == b"two"
    assert (host.root / "a/b.conf").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in (host.root / "a").iterdir()] == ["b.conf"]


async def test_a_name_that_would_leave_the_folder_is_refused(host: LocalHost) -> None:
    with pytest.raises(HostError, match="cannot be a unit's name"):
        await host.observe("../elsewhere")


async def test_another_users_unit_is_unknown_and_theirs_to_change(host: LocalHost) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from infra.hosts import HostError\n"
        "from infra.hosts.local import LocalHost\n"
        "host = LocalHost('there', Path(sys.argv[1]), Path(sys.argv[1]))\n"
        "print(asyncio.run(host.observe('sleeper')).state)\n"
        "try:\n"
        "    asyncio.run(host.remove('sleeper', print))\n"
        "except HostError as error:\n"
        "    print(error)\n"
    )
    with nobody() as user:
        theirs = LocalHost("theirs", user.short / "root's", user.short / "root's", first_moment=0.05)
        status = await theirs.ensure(sleeper(mark()), silent)
        theirs.root.chmod(0o755)
        (theirs.root / "units").chmod(0o755)
        done = await asyncio.to_thread(user.run, script, str(theirs.root))
        assert await theirs.observe("sleeper") == status
        await theirs.remove("sleeper", silent)
    assert done.stderr == ""
    assert re.fullmatch(r"unknown\nthere: sleeper: .* is another user's; run this as the user who .*\n", done.stdout)


def test_an_ordinary_user_in_a_deep_folder_can_start_adopt_and_end_a_unit() -> None:
    script = ENSURE + (
        "unit = Unit(name, tuple(argv))\n"
        "first = asyncio.run(host.observe(name))\n"
        "second = asyncio.run(host.ensure(unit, lambda stage: None))\n"
        "asyncio.run(host.remove(name, lambda stage: None))\n"
        "third = asyncio.run(host.observe(name))\n"
        "print(first.state, second == first, third.state)\n"
    )
    marked = mark()
    with nobody() as user:
        done = user.run(script, str(user.deep), "sleeper", "sleep", marked)
    assert (done.stderr, done.stdout) == ("", "ready\nrunning True stopped\n")
    assert sleeping(marked) == []
