"""Debian packages: installed where that is allowed, without the services that they would start.

A distribution's package of a server starts one on the usual port; nobody asked for that, so packages are
installed without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.setup.engine import Say, SetupError

POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks this script before a package may start a service; 101 forbids it (invoke-rc.d(8))."""

TIMEOUT_S = 600


def install(say: Say, program: str, package: str, services: tuple[str, ...]) -> None:
    """Install `package` for its `program`; `services` are what it would start at every boot.

    Raises SetupError that says what to do by hand where it may not be installed, and apt's own words where it fails.
    """
    by_hand = (
        f"install {program} with your package manager (Debian, Ubuntu: sudo apt-get install {program}) "
        "and run this again"
    )
    if not shutil.which("apt-get"):
        raise SetupError(f"{program} is missing and this machine has no apt-get; {by_hand}")
    sudo = _sudo()
    if sudo is None:
        raise SetupError(f"{program} is missing and installing it needs root or sudo without a password; {by_hand}")
    say(f"installing {program} with apt-get")
    with _no_service_started(sudo):
        _apt(sudo, "update", "-qq")
        _apt(sudo, "install", "-y", "-qq", "--no-install-recommends", package)
    if Path("/run/systemd/system").is_dir():
        for service in services:
            subprocess.run([*sudo, "systemctl", "disable", service], capture_output=True, check=False, timeout=60)


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
