"""The firewall: nothing comes in but SSH, at the port that sshd itself took this very connection on, and at others that
it listens on.

Rules of our own table, which leaves everybody else's alone, loaded at each boot by a unit of our own. New rules are
taken back by the machine's own systemd, which no login session takes along when it ends, unless a second connection,
made through them, confirms them in time: a mistake shuts nobody out of a machine.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from infra.bootstrap.engine import APT
from infra.bootstrap.machine import Place
from infra.bootstrap.step import VMS, StepError, Wrong
from infra.clouds import HostKind
from infra.ssh.connection import Connection, Done
from infra.ssh.errors import SshError

TABLE = "inet letterpress"
FOLDER = PurePosixPath("/etc/letterpress")
RULES = FOLDER / "firewall.nft"
TRIED = "/run/letterpress/firewall.nft"
"""Where rules lie until they are confirmed, each trial's under its own name: while they do they are taken back."""
ROLLBACK = "letterpress-firewall-rollback"
UNIT = PurePosixPath("/etc/systemd/system/letterpress-firewall.service")
ROLLBACK_S = 45
"""How long new rules stand without a confirmation."""

UNIT_FILE = f"""\
[Unit]
Description=Letterpress: firewall
Before=network-pre.target
Wants=network-pre.target
DefaultDependencies=no
After=local-fs.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=nft -f {RULES}

[Install]
WantedBy=multi-user.target
"""


def rules(ports: Iterable[int]) -> str:
    """nftables' own language. Replaces our table as a whole, in one transaction."""
    opened = ", ".join(str(port) for port in sorted(set(ports)))
    return f"""\
table {TABLE}
delete table {TABLE}
table {TABLE} {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iif "lo" accept
    ct state established,related accept
    ct state invalid drop
    meta l4proto {{ icmp, ipv6-icmp }} accept
    udp dport {{ 68, 546 }} accept
    tcp dport {{ {opened} }} accept
  }}
}}
"""


def digest(ports: Iterable[int]) -> str:
    return hashlib.sha256(rules(ports).encode()).hexdigest()[:16]


SSHD = re.compile(r'"(sshd|dropbear)"')
SOCKETS = ("ssh.socket", "sshd.socket")
"""Where systemd holds sshd's port in its place."""

LOOK = f"""\
ss -Hltnp
systemctl show -p Id,ActiveState,UnitFileState,Listen {" ".join(SOCKETS)} {UNIT.name}
echo
echo "rules $(sha256sum <{RULES} 2>/dev/null | cut -c1-16)"
echo "drops $(nft list table {TABLE} 2>/dev/null | grep -c 'policy drop')"
echo "trials $(ls {TRIED}.* 2>/dev/null | wc -l)"
exit 0"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look found: where sshd listens, the digest of the rules that the next boot loads, and whether rules drop
    what is not wanted, none are on trial, and the unit is enabled."""

    sshd: frozenset[int]
    rules: str
    sound: bool


def parse(said: str) -> Seen:
    """What LOOK printed."""
    ports: set[int] = set()
    found: dict[str, str] = {}
    unit: dict[str, list[str]] = {}
    for line in said.splitlines():
        words = line.split()
        if words[:1] == ["LISTEN"]:
            ports |= _open_port(words[3]) if SSHD.search(line) else set()
        elif not words:  # a unit ends
            if unit.get("ActiveState") == ["active"]:
                ports |= {port for address in unit.get("Listen", ()) for port in _open_port(address.split()[0])}
            if unit.get("Id") == [UNIT.name]:
                found["boots"] = unit.get("UnitFileState", [""])[0]
            unit = {}
        elif len(words) == 2 and "=" not in words[0]:
            found[words[0]] = words[1]
        else:
            key, _, value = line.partition("=")
            unit.setdefault(key, []).append(value)
    sound = (found.get("drops"), found.get("trials"), found.get("boots")) == ("1", "0", "enabled")
    return Seen(frozenset(ports), found.get("rules", ""), sound)


def _open_port(address: str) -> frozenset[int]:
    """The port of an address that more than this machine can reach: a forwarded display is none of those."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or host.startswith(("127.", "[::1]")):
        return frozenset()
    return frozenset({int(port)})


@dataclass(frozen=True, slots=True)
class Firewall:
    """`more` ports are open beside sshd's: a router host's 443 and 80."""

    more: tuple[int, ...] = ()
    name: str = "firewall"
    kinds: frozenset[HostKind] = VMS

    def look(self, _: Place) -> str:
        return LOOK

    def judge(self, machine: Place, seen: Done) -> Wrong | None:
        found = parse(seen.output)
        ports = self._ports(machine.connection, found)
        if found.sound and found.rules == digest(ports):
            return None
        return Wrong(f"opening TCP {', '.join(map(str, ports))} and nothing else")

    async def act(self, machine: Place) -> None:
        connection = machine.connection
        ports = self._ports(connection, parse(await connection.run(LOOK, "looking at its firewall")))
        install = (
            f"command -v nft >/dev/null || {{ {APT} update -qq; "
            f"{APT} install -y -qq --no-install-recommends nftables; }}"
        )
        await connection.run(install, "installing nftables", within_s=600, advice="Install nftables by hand")
        # Not yet where the next boot would find them.
        trial = secrets.token_hex(4)
        tried, rollback = f"{TRIED}.{trial}", f"{ROLLBACK}-{trial}"
        await connection.run(f"rm -f {TRIED}.*", "forgetting what was tried before")
        await connection.write(PurePosixPath(tried), rules(ports).encode(), 0o644)
        await connection.write(UNIT, UNIT_FILE.encode(), 0o644)
        # The one who takes them back is told to before they are made: the rules before them, if there were any.
        back = (
            f"test -e {tried} || exit 0; rm -f {tried}; "
            f"if test -e {RULES}; then nft -f {RULES}; else nft delete table {TABLE}; fi"
        )
        try_out = (
            f"nft -c -f {tried} && systemd-run --quiet --collect --unit={rollback} --on-active={ROLLBACK_S} "
            f"--timer-property=AccuracySec=1s /bin/sh -c '{back}' && nft -f {tried}"
        )
        await connection.run(try_out, "trying the firewall's rules")
        try:
            through = await connection.another()
        except SshError as error:
            raise StepError(
                machine,
                self.name,
                f"nothing comes through its new rules ({error})",
                f"They take themselves back after {ROLLBACK_S} s; nothing is locked out",
            ) from None
        try:
            confirm = (
                f"systemctl daemon-reload && systemctl enable --quiet {UNIT.name} && "
                f"mkdir -p {FOLDER} && mv {tried} {RULES} && {{ systemctl stop {rollback}.timer || :; }}"
            )
            await through.run(confirm, "confirming the firewall's rules")
        finally:
            through.close()

    def _ports(self, connection: Connection, seen: Seen) -> tuple[int, ...]:
        return tuple(sorted({connection.server_port, *seen.sshd, *self.more}))
