"""The firewall: nothing comes in but SSH, at the port that sshd itself took this very connection on.

Rules of our own table, which leaves everybody else's alone, loaded at each boot by a unit of our own. New rules are
taken back by themselves unless a second connection, made through them, confirms them in time: a mistake shuts nobody
out of a machine.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from infra.bootstrap.engine import APT
from infra.bootstrap.machine import Machine
from infra.bootstrap.step import VMS, StepError, Wrong
from infra.clouds import HostKind
from infra.ssh.errors import SshError

TABLE = "inet letterpress"
FOLDER = PurePosixPath("/etc/letterpress")
RULES = FOLDER / "firewall.nft"
TRIED = "/run/letterpress/firewall.nft"
"""Where rules lie until they are confirmed, each trial's under its own name: while they do they are taken back."""
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


@dataclass(frozen=True, slots=True)
class Firewall:
    """`more` ports are open beside sshd's: a router host's 443 and 80."""

    more: tuple[int, ...] = ()
    name: str = "firewall"
    kinds: frozenset[HostKind] = VMS

    async def look(self, machine: Machine) -> Wrong | None:
        ports = (machine.connection.server_port, *self.more)
        script = (
            f"nft list table {TABLE} 2>/dev/null | grep -q 'policy drop' && "
            f'test "$(sha256sum <{RULES} | cut -c1-16)" = {digest(ports)} && ! ls {TRIED}.* >/dev/null 2>&1 '
            "&& systemctl is-enabled --quiet letterpress-firewall.service"
        )
        done = await machine.connection.attempt(script, "looking at its firewall")
        return None if done.status == 0 else Wrong(f"opening TCP {', '.join(map(str, ports))} and nothing else")

    async def act(self, machine: Machine) -> None:
        connection = machine.connection
        ports = (connection.server_port, *self.more)
        install = (
            f"command -v nft >/dev/null || {{ {APT} update -qq; "
            f"{APT} install -y -qq --no-install-recommends nftables; }}"
        )
        await connection.run(install, "installing nftables", within_s=600, advice="Install nftables by hand")
        # Not yet where the next boot would find them.
        tried = f"{TRIED}.{secrets.token_hex(4)}"
        await connection.run(f"rm -f {TRIED}.*", "forgetting what was tried before")
        await connection.write(PurePosixPath(tried), rules(ports).encode(), 0o644)
        await connection.write(UNIT, UNIT_FILE.encode(), 0o644)
        # The one who takes them back is told to before they are made, and lives without this connection.
        try_out = (
            f"nft -c -f {tried} && "
            f"{{ setsid sh -c 'sleep {ROLLBACK_S}; test ! -e {tried} || nft delete table {TABLE}' "
            ">/dev/null 2>&1 & }; "
            f"nft -f {tried}"
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
                "systemctl daemon-reload && systemctl enable --quiet letterpress-firewall.service && "
                f"mkdir -p {FOLDER} && mv {tried} {RULES}"
            )
            await through.run(confirm, "confirming the firewall's rules")
        finally:
            through.close()
