"""A pod: a container that is the worker's image, reached through SSH. No systemd, no docker.

Units are kept there by a small program of ours (`infra.hosts.keep`), which is copied over and run by the
image's own Python.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from infra.hosts import HostError, PortInUseError, Progress, Unit, UnitState, UnitStatus, keep
from infra.hosts.logs import Position
from infra.hosts.remote import RemoteHost
from infra.hosts.systemd import note

KEEPER = PurePosixPath("keep.py")
UNITS = PurePosixPath("units")


@dataclass(frozen=True, slots=True)
class ContainerHost(RemoteHost):
    """Its units are kept by `infra.hosts.keep`."""

    async def observe(self, unit: str) -> UnitStatus:
        try:
            return (await self.units()).get(unit, UnitStatus(UnitState.STOPPED))
        except HostError:
            return UnitStatus(UnitState.UNKNOWN)

    async def ensure(self, unit: Unit, progress: Progress) -> UnitStatus:
        kept = await self._kept()
        seen = kept.get(unit.name, {})
        if seen.get("running") and seen.get("note") == note(unit):
            return _status(seen)
        if not seen.get("running"):
            await self._require_free(unit)
        progress("replacing what runs of it" if seen.get("running") else "starting")
        await self.write(KEEPER, await asyncio.to_thread(Path(keep.__file__).read_bytes), 0o755)
        described = {
            "argv": unit.argv,
            "env": dict(unit.env),
            "stop_signal": unit.stop_signal,
            "stop_grace": unit.stop_grace,
            "restart_after_s": unit.service.restart_after_s,
            "note": note(unit),
            "unit": asdict(unit),
        }
        await self.write(UNITS / f"{unit.name}.json", json.dumps(described).encode())
        await self._keeper(f"start {self.root / UNITS} {unit.name}", f"starting {unit.name}", 60 + unit.stop_grace)
        return await self.observe(unit.name)

    async def remove(self, unit: str, progress: Progress) -> None:
        progress(f"stopping {unit}")
        files = " ".join(str(self.root / UNITS / f"{unit}.{kind}") for kind in ("json", "state", "lock"))
        stop = f"python3 {self.root / KEEPER} stop {self.root / UNITS} {unit}"
        script = f"test -e {self.root / KEEPER} || exit 0; {stop} && rm -f {files}"
        await (await self.connect()).run(script, f"removing {unit}", within_s=keep.STOPS_S + 10)

    async def tail(self, unit: str, lines: int) -> str:
        script = f"tail -n {lines} {self._log(unit)} 2>/dev/null || :"
        return (await (await self.connect()).run(script, f"reading the log of {unit}")).rstrip("\n")

    async def log_end(self, unit: str) -> Position:
        script = f"stat -c '%i %s' {self._log(unit)} 2>/dev/null || echo 0 0"
        inode, size = (await (await self.connect()).run(script, f"reading the log of {unit}")).split()
        return Position(int(inode), int(size))

    async def written_since(self, unit: str, seen: Position) -> tuple[str, Position]:
        now = await self.log_end(unit)
        start = seen.offset if now.inode == seen.inode and now.offset >= seen.offset else 0
        script = f"tail -c +{start + 1} {self._log(unit)} 2>/dev/null | head -c 1048576"
        said = await (await self.connect()).run(script, f"reading the log of {unit}")
        whole = said[: said.rfind("\n") + 1]
        return whole, Position(now.inode, start + len(whole.encode(errors="surrogateescape")))

    async def keep_previous(self, unit: str) -> bytes | None:
        """The unit's description as it is now, to be given to `restore`."""
        return await self.read(UNITS / f"{unit}.json")

    async def restore(self, unit: str, before: bytes) -> None:
        """Make a unit run again as it ran before it was changed."""
        await self.write(UNITS / f"{unit}.json", before)
        await self._keeper(f"start {self.root / UNITS} {unit}", f"putting {unit} back", 300)

    async def units(self) -> Mapping[str, UnitStatus]:
        return {name: _status(seen) for name, seen in (await self._kept()).items()}

    def _log(self, unit: str) -> PurePosixPath:
        return self.root / UNITS / f"{unit}.log"

    async def _kept(self) -> dict[str, dict[str, Any]]:
        script = f"test -e {self.root / KEEPER} || exit 0; python3 {self.root / KEEPER} show {self.root / UNITS}"
        said = await (await self.connect()).run(script, "looking at its units")
        found = [json.loads(line) for line in said.splitlines()]
        return {seen["unit"]: seen for seen in found}

    async def _keeper(self, words: str, doing: str, within_s: float) -> None:
        await (await self.connect()).run(f"python3 {self.root / KEEPER} {words}", doing, within_s=within_s)

    async def _require_free(self, unit: Unit) -> None:
        connection = await self.connect()
        for address in unit.listens:
            if await connection.get(address.port, "/livez") is not None:
                raise PortInUseError(
                    f"{self.name}: {unit.name} cannot listen on {address}: another process does. If that is the pod's "
                    f"own worker, start the pod with the command `host`; or change `{address.setting}`"
                )


def _status(seen: Mapping[str, Any]) -> UnitStatus:
    if not seen["running"]:
        return UnitStatus(UnitState.STOPPED)
    since = datetime.fromtimestamp(seen["since"], UTC) if "since" in seen else None
    return UnitStatus(UnitState.RUNNING, seen.get("pid"), since, str(seen.get("note", "")).split(" ")[0] or None)
