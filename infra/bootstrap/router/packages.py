"""What the distribution brings: nginx, OpenSSH's client, a Python, and Redis or certbot where they are described.

A package of a server begins to run one on the usual port. Nobody asked for that, so it is installed without; one that
was here before is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infra.bootstrap.engine import APT
from infra.bootstrap.router.machine import RouterMachine
from infra.bootstrap.step import VMS, Wrong
from infra.clouds import HostKind
from infra.ssh.connection import Done

INSTALL_S = 900.0
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHONS = "python3 python3.13 python3.12 python3.11"
FIND_PYTHON = (
    f"for p in {PYTHONS}; do found=$($p -c 'import ensurepip, os, sys, venv; "
    "sys.version_info >= (3, 11) and print(os.path.realpath(sys.executable))' 2>/dev/null); "
    'test -z "$found" || { echo "$found"; break; }; done'
)
"""Prints the first Python that is new enough and can make a virtual environment; nothing if there is none."""
PYTHON = "Python 3.11 or newer with venv"
BY_HAND = "Install them by hand, and deploy again: the step is then found right"


@dataclass(frozen=True, slots=True)
class Package:
    program: str
    name: str
    service: str = ""
    """What it would start at every boot."""


def packages(machine: RouterMachine) -> Iterator[Package]:
    yield Package("nginx", "nginx-light", "nginx")
    yield Package("ssh", "openssh-client")
    yield Package("setpriv", "util-linux")
    if machine.redis:
        yield Package("redis-server", "redis-server", "redis-server")
    if machine.certbot:
        yield Package("certbot", "certbot", "certbot.timer")


@dataclass(frozen=True, slots=True)
class Packages:
    name: str = "packages"
    kinds: frozenset[HostKind] = VMS

    def look(self, machine: RouterMachine) -> str:
        programs = " ".join(package.program for package in packages(machine))
        return (
            f"export {PATH}; for p in {programs}; do command -v $p >/dev/null || echo $p; done; "
            f'test -n "$({FIND_PYTHON})" || echo {PYTHON}'
        )

    def judge(self, _: RouterMachine, seen: Done) -> Wrong | None:
        missing = named(seen.output)
        return Wrong(f"installing {', '.join(missing)}", BY_HAND) if missing else None

    async def act(self, machine: RouterMachine) -> None:
        missing = named(await machine.connection.run(self.look(machine), "looking for its packages"))
        wanted = [package for package in packages(machine) if package.program in missing]
        names = " ".join(package.name for package in wanted)
        services = " ".join(package.service for package in wanted if package.service)
        python = (
            f"{APT} install -y -qq --no-install-recommends python3 python3-venv\n"
            f'test -n "$({FIND_PYTHON})" || '
            f"{APT} install -y -qq --no-install-recommends python3.11 python3.11-venv\n"
            if PYTHON in missing
            else ""
        )
        install = f"{APT} install -y -qq --no-install-recommends {names}\n" if names else ""
        script = f"""export {PATH}; set -e
command -v apt-get >/dev/null || {{ echo "there is no apt-get here"; exit 1; }}
policy=/usr/sbin/policy-rc.d
test -e $policy || {{ printf '#!/bin/sh\\nexit 101\\n' >$policy; chmod 755 $policy; trap 'rm -f $policy' EXIT; }}
{APT} update -qq
{install}{python}for service in {services}; do systemctl disable $service >/dev/null 2>&1 || :; done"""
        doing = f"installing {', '.join(missing)}"
        await machine.connection.run(script, doing, within_s=INSTALL_S, advice=BY_HAND)


def named(said: str) -> tuple[str, ...]:
    """What a look named, one a line."""
    return tuple(line for line in said.splitlines() if line)
