"""The servers that only the tests start, got by the package manager as nginx is.

A machine where they may not be installed runs the other tests; those that need one are skipped and say so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.setup import apt
from infra.setup.engine import Say, SetupError

POSTGRES = Path("/usr/lib/postgresql")
"""Debian keeps a server's programs here, by major version, and off PATH."""


@dataclass(frozen=True, slots=True)
class Server:
    """`find` tells where the program is; `package` brings it, and `service` is what that would start, if anything."""

    program: str
    package: str
    service: str
    find: Callable[[], Path | None]


def find_postgres() -> Path | None:
    """The folder with `initdb`, `postgres` and the rest: the newest version's, or PATH's."""
    versions = sorted(POSTGRES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def find_redis() -> Path | None:
    return _on_path("redis-server")


def find_haproxy() -> Path | None:
    """Wanted by `make bench` alone: what a router has to be compared with."""
    return _on_path("haproxy")


def find_sshd() -> Path | None:
    return _on_path("sshd")


def find_buildah() -> Path | None:
    """Builds and runs the worker's container without an engine ..."""
    return _on_path("buildah")


def find_debootstrap() -> Path | None:
    """... on a base that this makes."""
    return _on_path("debootstrap")


def find_promtool() -> Path | None:
    """Prometheus's own checker of rules."""
    return _on_path("promtool")


def _on_path(program: str) -> Path | None:
    # Packages put servers where an ordinary user's PATH may not look.
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def find_nft() -> Path | None:
    """The firewall of test machines."""
    return _on_path("nft")


def find_sudo() -> Path | None:
    return _on_path("sudo")


def find_systemd_analyze() -> Path | None:
    """systemd's own checker of unit files."""
    return _on_path("systemd-analyze")


SERVERS = (
    Server("postgresql", "postgresql", "postgresql", find_postgres),
    Server("redis-server", "redis-server", "redis-server", find_redis),
    Server("haproxy", "haproxy", "haproxy", find_haproxy),
    Server("sshd", "openssh-server", "ssh", find_sshd),
    Server("promtool", "prometheus", "prometheus", find_promtool),
    Server("buildah", "buildah", "", find_buildah),
    Server("nft", "nftables", "nftables", find_nft),
    Server("sudo", "sudo", "", find_sudo),
    Server("systemd-analyze", "systemd", "", find_systemd_analyze),
    Server("debootstrap", "debootstrap", "", find_debootstrap),
)


def ensure_test_servers(say: Say) -> None:
    """Each of SERVERS, installed now if need be; one that cannot be is said, and is no error."""
    for server in SERVERS:
        if server.find() is None:
            try:
                apt.install(say, server.program, server.package, (server.service,) if server.service else ())
            except SetupError as error:
                say(f"{error}; until then the tests that need {server.program} are skipped")
