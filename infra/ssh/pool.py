"""Connections that are kept open for as long as a command runs: one a machine, made when it is first wanted."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from infra.hosts import Progress
from infra.ssh.connect import connect
from infra.ssh.connection import Connection, Log
from infra.ssh.pins import Pins
from infra.ssh.target import Patience, Target

ROTATE_AT_BYTES = 8 * 1024 * 1024


def kept_in(file: Path) -> Log:
    """A log of what is done on a machine; an earlier one of 8 MiB is kept beside it."""

    def keep(line: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if file.exists() and file.stat().st_size > ROTATE_AT_BYTES:
            file.replace(file.with_name(file.name + ".1"))
        with file.open("a") as log:
            log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")

    return keep


class Connections:
    """`logs` is the folder of the machines' logs: `MACHINE.ssh.log`, each command with what it said."""

    def __init__(self, pins: Pins, logs: Path) -> None:
        self.pins = pins
        self._logs = logs
        self._open: dict[str, tuple[Target, Connection]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def to(self, target: Target, progress: Progress, patience: Patience) -> Connection:
        """The open one, or a new one in the place of one that was lost. Raises as `connect` does."""
        async with self._locks[target.id]:
            held = self._open.get(target.id)
            if held is not None and held[0] == target and held[1].alive:
                return held[1]
            if held is not None:
                held[1].close()
            log = kept_in(self._logs / f"{target.id}.ssh.log")
            made = await connect(target, self.pins, progress, patience, log)
            self._open[target.id] = target, made
            return made

    def close(self) -> None:
        for _, connection in self._open.values():
            connection.close()
        self._open.clear()
