"""This computer as a host: units are processes in sessions of their own that outlive the command.

A unit is known by its pid file alone (`infra.hosts.record`), begun by `infra.hosts.launch`, and ended
through `infra.hosts.processes`; nothing is ever found or killed by name. Whoever changes a unit holds
its mutex, and so does a launch that is on its way, so any number of commands may run, and die, at any
moment. Whether a unit *serves* is its caller's question: this module knows processes only.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path, PurePath

from infra.files import replace_file
from infra.hosts import HostError, Progress, Unit, UnitState, UnitStatus, launch
from infra.hosts.logs import Position, end, last_lines, rotate, whole_lines_since
from infra.hosts.mutex import only_one
from infra.hosts.ports import require_free
from infra.hosts.processes import Process, command, ended, handles, send
from infra.hosts.record import Launch, Sighting, holders, look, note_reload

INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|TZ|LANG|LC_\w+|LD_LIBRARY_PATH|(HTTPS?|NO|ALL)_PROXY|SSL_CERT_\w+"
    r"|REQUESTS_CA_BUNDLE|(XDG|HF(?!_TOKEN$)|CUDA|NVIDIA|NCCL|TORCH|PYTORCH|TRITON|OMP|MKL|COVERAGE)_\w+",
    re.IGNORECASE,
)
"""What a unit gets of the environment of whoever starts it: where things are on this computer, and how its
GPU libraries behave. The rest by `Unit.inherits` alone, so that it runs as described and no command's
secrets live on in it."""

UNIT_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
MUTEX = ".mutex"
KILL_TIMEOUT_S = 10.0
"""How long a process may take to go after SIGKILL: one that waits for a disk or a GPU driver takes a while."""
SHOWN_LINES = 15
ANSWER_S = 5.0
"""How long a loopback server may take for a question while its machine is busy loading weights."""


class Change(Enum):
    """What has to happen to a unit so that it runs as described."""

    NONE = auto()
    START = auto()
    RELOAD = auto()
    REPLACE = auto()


def needed(seen: Sighting, unit: Unit) -> Change:
    """The least that makes what was seen into what is described."""
    if seen.state is UnitState.STOPPED:
        return Change.START
    if seen.record is None or seen.state is not UnitState.RUNNING or seen.record.fingerprint != unit.fingerprint:
        return Change.REPLACE
    if seen.record.config == unit.config:
        return Change.NONE
    return Change.RELOAD if unit.reload_signal else Change.REPLACE


def environment(unit: Unit, ours: Mapping[str, str]) -> dict[str, str]:
    """What the unit runs with, of what we run with ourselves and what it says."""
    inherited = {name: value for name, value in ours.items() if INHERITED.fullmatch(name) or name in unit.inherits}
    return inherited | dict(unit.env)


@dataclass(frozen=True, slots=True)
class LocalHost:
    """Keeps units under `root` (their pid files in `root/units`), with their output in `logs`."""

    name: str
    root: Path
    logs: Path
    first_moment: float = 0.2
    """Seconds: a unit that dies this soon (a typing error, a missing file) is reported by `ensure` itself."""

    async def observe(self, unit: str) -> UnitStatus:
        """What runs now; never waits for a change that somebody else is making. Unknown if another user keeps it."""
        return _status(self._pid_file(unit))

    async def ensure(self, unit: Unit, progress: Progress) -> UnitStatus:
        """Adopt, reload, replace or start; returns when the process runs, which is before it serves.

        Raises PortInUseError for a taken address (before anything is stopped), HostError for the rest.
        """
        pid_file = self._pid_file(unit.name)
        for folder in (self.root, pid_file.parent, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with self._mutex(unit.name) as mutex:
            seen = look(pid_file)
            change = needed(seen, unit)
            if change in (Change.START, Change.REPLACE):
                ours = {member.pid for member in seen.members()}
                for address in unit.listens:
                    require_free(address, unit.name, ours)
            match change:
                case Change.RELOAD:
                    progress("reloading its configuration")
                    self._reload(seen, unit)
                case Change.REPLACE:
                    progress("stopping what runs of it")
                    await self._end(unit.name, seen)
                    await self._start(unit, mutex, progress)
                case Change.START:
                    await self._start(unit, mutex, progress)
                case Change.NONE:
                    pass
            return look(pid_file).status

    async def remove(self, unit: str, progress: Progress) -> None:
        """Stop the unit and all its processes, and only them; gone is success. Logs stay."""
        pid_file = self._pid_file(unit)
        # Its mutex is there from before its launch on, so one that is only on its way is waited for, too.
        if not pid_file.with_suffix(MUTEX).exists():
            return
        async with self._mutex(unit):
            seen = look(pid_file)
            if seen.state is not UnitState.STOPPED:
                progress("stopping")
                await self._end(unit, seen)
            pid_file.unlink(missing_ok=True)
            pid_file.with_suffix(MUTEX).unlink()

    async def write(self, path: PurePath, content: bytes, mode: int = 0o600) -> None:
        """Put a file in place, whole or not at all; its folders are made, for their owner alone."""
        await asyncio.to_thread(_write, self.root / path, content, mode)

    async def read(self, path: PurePath) -> bytes | None:
        try:
            return await asyncio.to_thread((self.root / path).read_bytes)
        except FileNotFoundError:
            return None

    async def get(self, port: int, path: str) -> tuple[int, bytes] | None:
        """A proxy from the environment has no business between us and this computer's own ports."""
        import httpx  # noqa: PLC0415 - keeping units needs nothing but Python

        async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}{path}")
            except httpx.TransportError:
                return None
        return answer.status_code, answer.content

    async def tail(self, unit: str, lines: int) -> str:
        """The last lines that the unit wrote; empty if it never wrote any."""
        return last_lines(self._log(unit), lines)

    async def log_end(self, unit: str) -> Position:
        return end(self._log(unit))

    async def written_since(self, unit: str, seen: Position) -> tuple[str, Position]:
        return whole_lines_since(self._log(unit), seen)

    async def units(self) -> Mapping[str, UnitStatus]:
        """Everything that was started here and not removed since, by name."""
        mutexes = sorted(_listing(self.root / "units", MUTEX))
        return {mutex.stem: _status(self._pid_file(mutex.stem)) for mutex in mutexes}

    def _pid_file(self, unit: str) -> Path:
        if not UNIT_NAME.fullmatch(unit):
            raise HostError(f"{unit!r} cannot be a unit's name: small letters, digits and dashes, a letter first")
        return self.root / "units" / f"{unit}.json"

    def _log(self, unit: str) -> Path:
        return self.logs / f"{unit}.log"

    def _mutex(self, unit: str) -> AbstractAsyncContextManager[int]:
        return only_one(self._pid_file(unit).with_suffix(MUTEX), f"{self.name}: {unit}")

    async def _start(self, unit: Unit, mutex: int, progress: Progress) -> None:
        progress("starting")
        for address in unit.listens:
            require_free(address, unit.name)
        rotate(self.logs, unit.name)
        pid_file = self._pid_file(unit.name)
        launcher = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", launch.__file__),
            *(str(mutex), Launch.of(unit, self.root, self._log(unit.name), pid_file).specification),
            env=environment(unit, os.environ),
            pass_fds=(mutex,),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at the command's terminal must not tear a launch
        )
        _, words = await launcher.communicate()
        if launcher.returncode == launch.BUSY:
            raise self._not_ours(unit.name)
        if launcher.returncode != 0:
            raise HostError(f"{self.name}: {unit.name} could not be started: {words.decode().strip()}")
        await self._survive_first_moment(unit)

    async def _survive_first_moment(self, unit: Unit) -> None:
        main = look(self._pid_file(unit.name)).main()
        with handles([main] if main else []) as opened:
            try:
                async with asyncio.timeout(self.first_moment):
                    for pidfd in opened:
                        await ended(pidfd)
            except TimeoutError:
                return
        raise HostError(
            f"{self.name}: {unit.name} ended as soon as it had started; its log ({self._log(unit.name)}) ends with:\n"
            f"{last_lines(self._log(unit.name), SHOWN_LINES) or '(nothing)'}"
        )

    def _reload(self, seen: Sighting, unit: Unit) -> None:
        main = seen.main()
        with handles([main] if main else []) as opened:
            for pidfd in opened:
                send(pidfd, signal.Signals[unit.reload_signal])
        # After the signal: a command that dies in between leaves one reload too many, never one too few.
        note_reload(self._pid_file(unit.name), unit.config)

    async def _end(self, unit: str, seen: Sighting) -> None:
        """End every process of the unit: by its own signal, and after its grace by SIGKILL."""
        record = seen.record
        if record is not None and not (
            await _all_end(seen, signal.Signals[record.stop_signal], record.stop_grace)
            or await _all_end(seen, signal.SIGKILL, KILL_TIMEOUT_S)
        ):
            left = ", ".join(str(member.pid) for member in seen.members())
            raise HostError(
                f"{self.name}: {unit}: process {left} has not ended {KILL_TIMEOUT_S:g} s after SIGKILL; it waits for a "
                "disk or a driver. Try again, or restart the machine"
            )
        if look(self._pid_file(unit)).state is not UnitState.STOPPED:
            raise self._not_ours(unit)

    def _not_ours(self, unit: str) -> HostError:
        """A process outside of the unit's session has its pid file open and locked: not ours to end."""
        found = holders(self._pid_file(unit))
        who = ", ".join(f"process {pid} ({command(pid)})" for pid in found) or "a process that only root can see"
        return HostError(
            f"{self.name}: {unit} is held by {who}, which does not belong to it; end that yourself, then try again"
        )


async def _all_end(seen: Sighting, number: signal.Signals, patience: float) -> bool:
    """Signal the unit's processes and wait until none is left; False if `patience` seconds are not enough.

    A main process is asked alone and ends its children itself; what it leaves behind is asked after it.
    SIGKILL asks nobody, so it goes to all of them at once.
    """
    try:
        async with asyncio.timeout(patience):
            while members := seen.members():
                main = seen.main()
                targets: tuple[Process, ...] = (main,) if main and number is not signal.SIGKILL else members
                with handles(targets) as opened:
                    for pidfd in opened:
                        send(pidfd, number)
                    await asyncio.gather(*(ended(pidfd) for pidfd in opened))
    except TimeoutError:
        return False
    return True


def _status(pid_file: Path) -> UnitStatus:
    try:
        return look(pid_file).status
    except PermissionError:
        return UnitStatus(UnitState.UNKNOWN)


def _listing(folder: Path, suffix: str) -> list[Path]:
    return list(folder.glob(f"*{suffix}"))


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, content, mode)
