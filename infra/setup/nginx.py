"""Gets nginx, the edge, onto this machine by its package manager.

The distribution's package starts a server of its own on port 80; nobody asked for that, so the package
is installed without it. An nginx that was here before is left as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.nginx import find_nginx
from infra.setup.engine import Say, SetupError

POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks this script before a package may start a service; 101 forbids it (invoke-rc.d(8))."""

TIMEOUT_S = 600


def ensure_nginx(say: Say) -> Path:
    """The nginx binary, installed now if need be and if that is allowed."""
    if found := find_nginx():
        return found
    by_hand = "install nginx with your package manager (Debian, Ubuntu: sudo apt-get install nginx) and run this again"
    if not shutil.which("apt-get"):
        raise SetupError(f"nginx is missing and this machine has no apt-get; {by_hand}")
    sudo = _sudo()
    if sudo is None:
        raise SetupError(f"nginx is missing and installing it needs root or sudo without a password; {by_hand}")
    say("installing nginx with apt-get")
    with _no_service_started(sudo):
        _apt(sudo, "update", "-qq")
        _apt(sudo, "install", "-y", "-qq", "--no-install-recommends", "nginx-light")
    if Path("/run/systemd/system").is_dir():
        subprocess.run([*sudo, "systemctl", "disable", "nginx"], capture_output=True, check=False, timeout=60)
    if found := find_nginx():
        return found
    raise SetupError(f"apt-get installed nginx-light, yet no nginx is to be found; {by_hand}")


def _sudo() -> list[str] | None:
    """What to put before a command to run it as root, or None if that is not allowed."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False, timeout=30).returncode == 0:
        return [sudo, "-n"]
    return None


def _apt(sudo: list[str], *arguments: str) -> None:
    command = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise SetupError(f"`apt-get {' '.join(arguments)}` failed:\n{last}")


@contextmanager
def _no_service_started(sudo: list[str]) -> Iterator[None]:
    """Keep the package from starting its service, unless this machine has a policy of its own."""
    if POLICY.exists():
        yield
        return
    script = f"printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}"
    subprocess.run([*sudo, "sh", "-c", script], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run([*sudo, "rm", "-f", str(POLICY)], check=False, timeout=30)
