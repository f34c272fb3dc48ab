"""A machine with systemd, reached through SSH: units are systemd's, logs are the journal's.

Everything of a stack on a machine carries the stack's id: units by their names' beginning, files by their
folder. So several stacks may share a machine, and each is removed without a trace of it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from infra.hosts import HostError, PortInUseError, Progress, Unit, UnitState, UnitStatus
from infra.hosts.logs import Position
from infra.hosts.remote import RemoteHost
from infra.hosts.systemd import FOLDER, STARTED, note, service_name, unit_file
from infra.ssh.errors import CommandError

PROPERTIES = "LoadState,ActiveState,SubState,MainPID,ActiveEnterTimestampMonotonic"
SHOWN_LINES = 15
START_S = 60.0
STEP_S = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A unit as systemd and its own notes tell of it. `started` is what its last start noted, None if it has none."""

    name: str
    loaded: bool
    active: str
    sub: str
    pid: int
    since: datetime | None
    started: str | None

    @property
    def status(self) -> UnitStatus:
        if not self.loaded or self.active in ("inactive", "failed"):
            return UnitStatus(UnitState.STOPPED)
        fingerprint = self.started.split(" ")[0] if self.started else None
        return UnitStatus(UnitState.RUNNING, self.pid or None, self.since, fingerprint)


def unit_prefix(stack_id: str) -> str:
    return f"letterpress-{stack_id}-"


@dataclass(frozen=True, slots=True)
class SshHost(RemoteHost):
    """Its units are systemd's."""

    async def observe(self, unit: str) -> UnitStatus:
        """Unknown if the machine does not answer."""
        try:
            return (await self.see(unit)).status
        except HostError:
            return UnitStatus(UnitState.UNKNOWN)

    async def see(self, unit: str) -> Seen:
        (seen,) = (await self._see([unit])).values()
        return seen

    async def ensure(self, unit: Unit, progress: Progress) -> UnitStatus:
        """Adopt, reload, replace or start; returns when the process runs, which is before it serves."""
        seen = await self.see(unit.name)
        if seen.status.state is UnitState.RUNNING and seen.started == note(unit):
            return seen.status
        same = seen.status.state is UnitState.RUNNING and seen.status.fingerprint == unit.fingerprint
        if same and unit.reload_signal:
            progress("reloading its configuration")
            await self._install(unit, f"systemctl reload {self._service(unit.name)} && {_marks(unit, self.prefix)}")
        else:
            if seen.status.state is not UnitState.RUNNING:
                await self._require_free(unit)
            progress("starting" if seen.status.state is UnitState.STOPPED else "replacing what runs of it")
            await self._install(unit, f"systemctl restart {self._service(unit.name)}")
        return (await self.see(unit.name)).status

    async def remove(self, unit: str, progress: Progress) -> None:
        """Stop the unit and all its processes, and only them; gone is success. The journal keeps its log."""
        progress(f"stopping {unit}")
        service = self._service(unit)
        script = (
            f"test -e {FOLDER}/{service} || exit 0; systemctl disable --now {service} && rm -f {FOLDER}/{service} "
            f"{STARTED}/{service} && systemctl daemon-reload; systemctl reset-failed {service} 2>/dev/null || :"
        )
        await (await self.connect()).run(script, f"removing {service}", within_s=300.0)

    async def tail(self, unit: str, lines: int) -> str:
        journal = f"journalctl --no-pager -o cat -n {lines} -u {self._service(unit)}"
        return (await (await self.connect()).run(journal, f"reading the log of {unit}")).rstrip("\n")

    async def log_end(self, unit: str) -> Position:  # noqa: ARG002 - one clock for all of them
        """A position in the journal is a moment: microseconds since 1970, by the machine's clock."""
        now = await (await self.connect()).run("date +%s%N", "reading its clock")
        return Position(0, int(now) // 1000)

    async def written_since(self, unit: str, seen: Position) -> tuple[str, Position]:
        since = f"@{seen.offset // 1_000_000}.{seen.offset % 1_000_000:06d}"
        journal = f"journalctl --no-pager -o json --since={since} -u {self._service(unit)}"
        said = await (await self.connect()).run(journal, f"reading the log of {unit}")
        lines, last = [], seen.offset
        for line in said.splitlines():
            entry = json.loads(line)
            at = int(entry["__REALTIME_TIMESTAMP"])
            if at > seen.offset:
                lines.append(_message(entry["MESSAGE"]))
                last = max(last, at)
        return "".join(f"{line}\n" for line in lines), Position(0, last)

    async def keep_previous(self, unit: str) -> bytes | None:
        """The unit's file as it is now, to be given to `restore`."""
        return await (await self.connect()).read(FOLDER / self._service(unit))

    async def restore(self, unit: str, before: bytes) -> None:
        """Make a unit run again as it ran before it was changed."""
        connection, service = await self.connect(), self._service(unit)
        await connection.write(FOLDER / service, before, 0o644)
        script = f"systemctl daemon-reload; systemctl reset-failed {service} 2>/dev/null; systemctl restart {service}"
        await connection.run(script, f"putting {service} back", within_s=300)

    async def units(self) -> Mapping[str, UnitStatus]:
        """Everything of this stack that was installed here."""
        listing = f"ls {FOLDER} 2>/dev/null | grep '^{self.prefix}.*\\.service$' || :"
        found = (await (await self.connect()).run(listing, "listing its units")).split()
        names = [name.removeprefix(self.prefix).removesuffix(".service") for name in found]
        return {name: seen.status for name, seen in (await self._see(names)).items()}

    @property
    def prefix(self) -> str:
        return unit_prefix(self.stack_id)

    def _service(self, unit: str) -> str:
        return service_name(self.prefix, unit)

    async def _see(self, units: list[str]) -> dict[str, Seen]:
        if not units:
            return {}
        blocks = [
            f"echo unit {shlex.quote(unit)}; systemctl show -p {PROPERTIES} {self._service(unit)}; started=; "
            f"{{ read -r started <{STARTED}/{self._service(unit)}; }} 2>/dev/null; echo Started=$started"
            for unit in units
        ]
        # Units are looked at more often than anything else: what the shell does itself starts no process.
        script = "; ".join(("grep '^btime ' /proc/stat", *blocks))
        said = await (await self.connect()).run(script, "looking at its units")
        return parse_seen(said)

    async def _install(self, unit: Unit, then: str) -> None:
        service = self._service(unit.name)
        connection = await self.connect()
        content = unit_file(unit, self.prefix, self.root)
        file = FOLDER / service
        await connection.run(f"mkdir -p {self.root} && chmod 711 {self.root}", f"making {self.root}")
        await connection.write(file, content.encode(), 0o644)
        script = (
            f"systemctl daemon-reload && systemctl enable --quiet {service} && "
            f"{{ systemctl reset-failed {service} 2>/dev/null || :; }} && {then}"
        )
        try:
            await connection.run(script, f"starting {service}", within_s=START_S + unit.stop_grace)
        except CommandError as error:
            tail = await self.tail(unit.name, SHOWN_LINES)
            raise HostError(f"{error}\nThe log of {unit.name} ends with:\n{tail or '(nothing)'}") from None

    async def _require_free(self, unit: Unit) -> None:
        connection = await self.connect()
        for address in unit.listens:
            look = f"ss -Hltnp 'sport = :{address.port}'"
            held = await connection.attempt(look, f"looking whether port {address.port} is free")
            if held.status == 0 and held.output.strip():
                raise PortInUseError(
                    f"{self.name}: {unit.name} cannot listen on {address}: another process does "
                    f"({held.output.split()[-1]}). End that, or change `{address.setting}` in the stack file"
                )


def parse_seen(said: str) -> dict[str, Seen]:
    """What `SshHost._see` printed: when the machine was booted, and a block for each unit."""
    btime, *rest = said.splitlines()
    booted = int(btime.split()[1])
    found: dict[str, Seen] = {}
    name, values = "", dict[str, str]()
    for line in (*rest, "unit "):
        if line.startswith("unit "):
            if name:
                found[name] = _seen(name, values, booted)
            name, values = line.removeprefix("unit "), {}
        else:
            key, _, value = line.partition("=")
            values[key] = value
    return found


def _seen(name: str, values: Mapping[str, str], booted: float) -> Seen:
    entered = int(values.get("ActiveEnterTimestampMonotonic") or 0)
    return Seen(
        name,
        loaded=values.get("LoadState") not in ("not-found", None),
        active=values.get("ActiveState", "inactive"),
        sub=values.get("SubState", ""),
        pid=int(values.get("MainPID") or 0),
        since=datetime.fromtimestamp(round(booted + entered / 1e6), UTC) if entered else None,
        started=values.get("Started") or None,
    )


def _marks(unit: Unit, prefix: str) -> str:
    """A reload starts nothing, and so notes nothing by itself."""
    return f"echo {shlex.quote(note(unit))} >{STARTED}/{service_name(prefix, unit.name)}"


def _message(value: object) -> str:
    """The journal gives bytes that are no text as numbers."""
    if isinstance(value, list):
        return bytes(value).decode(errors="replace")
    return str(value)
