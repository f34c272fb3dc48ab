"""What OpenSSH is told for a way to a machine that a person holds open: the same pins, the same key."""

from __future__ import annotations

from pathlib import Path

from infra.ssh.target import Target


def forward_argv(target: Target, pins: Path, near: int, far: int) -> tuple[str, ...]:
    """`ssh` in the foreground: 127.0.0.1:`near` here is 127.0.0.1:`far` on the machine, until it is ended."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "HostKeyAlias": target.id,
        "UserKnownHostsFile": f'"{pins}"',
        "GlobalKnownHostsFile": "/dev/null",
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ExitOnForwardFailure": "yes",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "ConnectTimeout": "10",
    }
    return (
        *("ssh", "-F", "none", "-N", "-T", "-n"),
        *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
        *("-i", str(target.key), "-L", f"127.0.0.1:{near}:127.0.0.1:{far}"),
        *("-l", target.user, "-p", str(target.port), target.address),
    )
