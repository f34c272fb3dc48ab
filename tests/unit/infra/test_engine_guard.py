"""Who holds a stack, and when a dead holder's lock may go."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.engine.guard import (
    MARK,
    BackendLock,
    BusyError,
    backend_locks,
    end_orphans,
    only_operation,
    orphans,
    require_orphaned,
)
from tests.waiting import eventually

COMPLAINT = """\
error: the stack is currently locked by 1 lock(s). Either wait for the other process(es) to end or delete the lock \
file with `pulumi cancel`.
  file:///x/.pulumi/locks/organization/letterpress/s/fda7.json: created by me@there (pid 4711) at 2026-11-23T21:07:22Z
"""


def lock(host: str = "", pid: int = 0, ago_s: float = 0) -> BackendLock:
    return BackendLock("me", host or socket.gethostname(), pid, datetime.now(UTC) - timedelta(seconds=ago_s))


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_second_operation_is_told_who_holds_the_stack(tmp_path: Path) -> None:
    file = tmp_path / "local" / "operation.lock"
    said = rf"stack local: `deploy local` \(process {os.getpid()}, since .* UTC\) is under way"
    with (
        only_operation(file, "deploy local"),
        pytest.raises(BusyError, match=said),
        only_operation(file, "destroy local"),
    ):
        pass


def test_the_next_operation_may_begin_when_one_has_ended(tmp_path: Path) -> None:
    for what in ("deploy", "destroy"):
        with only_operation(tmp_path / "operation.lock", what):
            pass


def test_a_killed_operation_holds_the_stack_no_more(tmp_path: Path) -> None:
    file = tmp_path / "operation.lock"
    code = (
        "import os, signal, sys; from pathlib import Path; from infra.engine.guard import only_operation\n"
        "with only_operation(Path(sys.argv[1]), 'deploy'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(file)], check=False).returncode == -9
    with only_operation(file, "deploy"):
        pass


def test_a_lock_is_read_out_of_the_engines_complaint() -> None:
    assert backend_locks(COMPLAINT) == (
        BackendLock("me", "there", 4711, datetime(2026, 11, 23, 21, 7, 22, tzinfo=UTC)),
    )


def test_a_lock_of_another_host_is_never_cleared() -> None:
    with pytest.raises(BusyError, match=r"locked by me@elsewhere \(process .*on another machine"):
        require_orphaned([lock(host="elsewhere", pid=dead_pid())], "s")


def test_a_lock_whose_owner_is_dead_may_go() -> None:
    require_orphaned([lock(pid=dead_pid())], "s")


def test_a_lock_whose_owner_lives_is_respected_and_named() -> None:
    with pytest.raises(BusyError, match="was not started by Letterpress"):
        require_orphaned([lock(pid=os.getpid())], "s")


def test_a_lock_whose_owners_number_was_given_to_a_later_process_may_go() -> None:
    require_orphaned([lock(pid=os.getpid(), ago_s=1e6)], "s")


def test_a_backend_that_does_not_say_who_locked_it_is_respected() -> None:
    with pytest.raises(BusyError, match="not whose"):
        require_orphaned(backend_locks("[409] Conflict: Another update is currently in progress."), "s")


def sleeper(root: Path, *, ignoring: bool = False) -> subprocess.Popen[str]:
    """A process with a stack's mark, in a session of its own as engines have it."""
    code = "import signal, sys, time\n"
    if ignoring:
        code += "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += "print('up', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, MARK: str(root)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    return process


async def test_what_still_works_for_the_stack_is_found_by_its_mark_and_ended(tmp_path: Path) -> None:
    with sleeper(tmp_path / "a") as ours, sleeper(tmp_path / "b") as anothers:
        found = orphans(tmp_path / "a")
        assert [each.pid for each in found] == [ours.pid]
        await end_orphans(found)
        assert ours.wait(5) != 0
        assert anothers.poll() is None
        anothers.kill()


async def test_one_that_does_not_listen_is_killed_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.engine.guard.INTERRUPT_GRACE_S", 0.2)
    with sleeper(tmp_path, ignoring=True) as ours:
        await end_orphans(orphans(tmp_path))
        assert eventually(ours.poll, 5, "it is killed") == -9
