"""Host keys, each pinned under its machine's id at the first contact, in a file that OpenSSH reads too.

    ssh -o UserKnownHostsFile=… -o HostKeyAlias=ID -o StrictHostKeyChecking=yes …

A pin goes with its machine. A key that is another one is never taken over by itself.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.files import replace_file


@dataclass(frozen=True, slots=True)
class Pins:
    """`file` is in known_hosts' format: a line `ID TYPE KEY` for each machine."""

    file: Path

    def get(self, machine: str) -> str | None:
        """The machine's key as `TYPE KEY`."""
        return self._read().get(machine)

    def pin(self, machine: str, key: str) -> str:
        """Pin a key if none is; the one that is pinned then. Of two at once the first one stays."""
        with self._alone():
            pinned = self._read()
            if machine not in pinned:
                self._write(pinned | {machine: key})
            return self._read()[machine]

    def add(self, lines: str) -> None:
        """Pin what another's file says; of a machine that both know, as it says."""
        with self._alone():
            self._write(self._read() | _pinned(lines))

    def forget(self, machine: str) -> None:
        with self._alone():
            pinned = self._read()
            if pinned.pop(machine, None) is not None:
                self._write(pinned)

    def _read(self) -> dict[str, str]:
        try:
            return _pinned(self.file.read_text())
        except FileNotFoundError:
            return {}

    def _write(self, pinned: dict[str, str]) -> None:
        lines = [f"{machine} {key}\n" for machine, key in sorted(pinned.items())]
        replace_file(self.file, "".join(lines).encode())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.file.with_name(f".{self.file.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _pinned(lines: str) -> dict[str, str]:
    parts = (line.split(" ", 1) for line in lines.splitlines() if " " in line)
    return {machine: key.strip() for machine, key in parts}
