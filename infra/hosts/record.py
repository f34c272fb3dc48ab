"""A unit's pid file: what runs, and, by the lock on it, whether it still does.

The file's first line is the `Record`, written whole by `infra.hosts.launch` before the unit begins; each
reload adds a line with the configuration then taken over. The unit holds a lock on the file from before
its exec, and its children inherit it, so the kernel itself keeps the answer to "is anything of it
left?": no process has to be asked, and none can be mistaken for another.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from infra.hosts import Unit, UnitState, UnitStatus
from infra.hosts.launch import boot_id, locked
from infra.hosts.processes import Process, holds, process, processes, started_at


@dataclass(frozen=True, slots=True)
class Record:
    """What was started, and how to stop it. `config` is the digest of the configuration in force."""

    pid: int
    start_ticks: int
    boot_id: str
    fingerprint: str
    config: str
    stop_signal: str
    stop_grace: float


@dataclass(frozen=True, slots=True)
class Launch:
    """What `infra.hosts.launch` is told. It adds the identity (pid, start ticks, boot id) to the record."""

    argv: tuple[str, ...]
    folder: str
    log: str
    pid_file: str
    record: dict[str, str | float]

    @classmethod
    def of(cls, unit: Unit, folder: Path, log: Path, pid_file: Path) -> Launch:
        described: dict[str, str | float] = {
            "fingerprint": unit.fingerprint,
            "config": unit.config,
            "stop_signal": unit.stop_signal,
            "stop_grace": unit.stop_grace,
        }
        return cls(unit.argv, str(folder), str(log), str(pid_file), described)

    @property
    def specification(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one look at a pid file found: the state, the record if anything runs, and the file's identity."""

    state: UnitState
    record: Record | None = None
    file: os.stat_result | None = None

    @property
    def status(self) -> UnitStatus:
        if self.record is None:
            return UnitStatus(self.state)
        main = self.record.pid if self.state is UnitState.RUNNING else None
        return UnitStatus(self.state, main, started_at(self.record.start_ticks), self.record.fingerprint)

    def main(self) -> Process | None:
        """The unit's main process, while it lives."""
        if self.record is None:
            return None
        found = process(self.record.pid)
        return found if found and found.start_ticks == self.record.start_ticks else None

    def members(self) -> tuple[Process, ...]:
        """The unit's processes: those of the recorded session, if one of them holds this pid file.

        The kernel gives a number to nobody while a session goes by it. So one member that holds our file
        proves that the session is the one we began, and its other members (which may have closed the
        file, as Python's subprocess does) are ours too. Without one, the number may be a stranger's.
        """
        if self.record is None or self.file is None:
            return ()
        session = tuple(found for found in processes() if found.session == self.record.pid)
        file = self.file
        return session if any(holds(found.pid, file) for found in session) else ()


def look(pid_file: Path) -> Sighting:
    """What runs behind this pid file now."""
    try:
        with pid_file.open("rb") as file:
            if not locked(file.fileno()):
                return Sighting(UnitState.STOPPED)
            content, identity = file.read(), os.fstat(file.fileno())
    except FileNotFoundError:
        return Sighting(UnitState.STOPPED)
    sighting = Sighting(UnitState.RUNNING, _parse(content), identity)
    if sighting.record is None or sighting.record.boot_id != boot_id():
        # Locked by somebody who is not a unit of this boot; the launcher will refuse to take it from them.
        return Sighting(UnitState.STOPPED)
    if sighting.main() is None:
        return Sighting(UnitState.ORPHANED, sighting.record, identity)
    return sighting


def holders(pid_file: Path) -> tuple[int, ...]:
    """Pids of whoever has the pid file open, the unit's or not: for a message."""
    file = pid_file.stat()
    return tuple(found.pid for found in processes() if holds(found.pid, file))


def note_reload(pid_file: Path, config: str) -> None:
    """Add that the running unit has taken over this configuration."""
    with pid_file.open("a") as file:
        file.write(json.dumps({"config": config}) + "\n")


def _parse(content: bytes) -> Record | None:
    first, *reloads = content.splitlines() or [b""]
    try:
        record = Record(**json.loads(first))
    except (ValueError, TypeError):
        return None
    for reload in reloads:
        with suppress(ValueError):  # a line that a full disk cut short: the reload is asked for once more
            record = replace(record, config=json.loads(reload)["config"])
    return record
