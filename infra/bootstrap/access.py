"""The tunnel service's key: a line of authorized_keys that may forward to the workers' ports and do nothing else."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from infra.bootstrap.machine import Machine
from infra.bootstrap.step import EVERYWHERE, Wrong
from infra.clouds import HostKind
from infra.ssh.connection import Done


def comment(stack_id: str) -> str:
    """Ends the line, and is what it is found by."""
    return f"letterpress-tunnel-{stack_id}"


@dataclass(frozen=True, slots=True)
class TunnelKey:
    name: str = "tunnel key"
    kinds: frozenset[HostKind] = EVERYWHERE

    def look(self, machine: Machine) -> str:
        return f'{_authorized_keys(machine)} && grep -qxF {shlex.quote(machine.tunnel_line)} "$f"'

    def judge(self, _: Machine, seen: Done) -> Wrong | None:
        return None if seen.status == 0 else Wrong("letting the tunnel service forward")

    async def act(self, machine: Machine) -> None:
        others = f'grep -v " {comment(machine.stack_id)}$" "$f" || :'
        script = (
            f'set -e; umask 077; {_authorized_keys(machine)}; mkdir -p "$(dirname "$f")"; touch "$f"; '
            f'{{ {others}; echo {shlex.quote(machine.tunnel_line)}; }} >"$f.new"; '
            'chown --reference="$f" "$f.new"; chmod 600 "$f.new"; mv "$f.new" "$f"; '
            f'chown {machine.connection.target.user}: "$(dirname "$f")" "$f"'
        )
        await machine.connection.run(script, "letting the tunnel service forward")


def forget_script(user: str, stack_id: str) -> str:
    """Takes the line away again."""
    return f'f=~{user}/.ssh/authorized_keys; test ! -e "$f" || sed -i \'/ {comment(stack_id)}$/d\' "$f"'


def _authorized_keys(machine: Machine) -> str:
    return f"f=~{machine.connection.target.user}/.ssh/authorized_keys"
