"""What ssh is told, as argument lists and files' contents. Pure.

Everything is said here and nothing read from anybody's configuration (`-F none`): a tunnel must not depend on the
`~/.ssh/config` of whoever started it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from router.contract import TunnelMachine, tunnel_socket

ALIVE_EVERY_S = 2
ALIVE_MISSES = 2
"""ssh gives up when it would have to ask a third time: a dead machine is noticed after six to eight seconds."""
CONNECT_S = 8
SOCKETS = "w"
"""The folder of the workers' sockets (`router.contract.tunnel_socket`)."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the service keeps things: `run` is short and on this host alone, `key` the private key."""

    run: Path
    key: Path

    def socket(self, worker: str) -> Path:
        """The near end of the way to a worker."""
        return Path(tunnel_socket(self.run, worker))

    def control(self, machine: str) -> Path:
        """Where ssh listens for being told of more forwards. Short: it is made under a name of 17 bytes more."""
        return self.run / f"{hashlib.sha256(machine.encode()).hexdigest()[:7]}.c"

    def known_hosts(self, machine: str) -> Path:
        return self.run / f"{hashlib.sha256(machine.encode()).hexdigest()[:12]}.k"

    @property
    def lock(self) -> Path:
        return self.run / "lock"


def known_hosts(machine: TunnelMachine) -> str:
    """The machine's key under its id: addresses and ports are used again by others, ids never."""
    return f"{machine.id} {machine.host_key}\n"


def connect(machine: TunnelMachine, places: Places) -> tuple[str, ...]:
    """The connection, in the foreground, doing nothing but forward."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "HostKeyAlias": machine.id,
        "UserKnownHostsFile": f'"{places.known_hosts(machine.id)}"',
        "GlobalKnownHostsFile": "/dev/null",
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
        "HostKeyAlgorithms": _algorithms(machine.host_key),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "ControlMaster": "yes",
        "ControlPersist": "no",
        "ExitOnForwardFailure": "no",
        "StreamLocalBindUnlink": "yes",
        "StreamLocalBindMask": "0177",
        "ServerAliveInterval": str(ALIVE_EVERY_S),
        "ServerAliveCountMax": str(ALIVE_MISSES),
        "TCPKeepAlive": "no",
        "ConnectTimeout": str(CONNECT_S),
        "ConnectionAttempts": "1",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "PermitLocalCommand": "no",
        "Compression": "no",
        "LogLevel": "INFO",
    }
    return (
        *("ssh", "-F", "none", "-N", "-T", "-n"),
        *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
        *("-i", str(places.key), "-S", str(places.control(machine.id))),
        *("-l", machine.user, "-p", str(machine.port), machine.host),
    )


def forward(machine: TunnelMachine, places: Places, worker: str, port: int) -> tuple[str, ...]:
    """Tells the connection to open a worker's socket."""
    return (*_control(machine.id, places, "forward"), "-L", _way(places, worker, port), machine.id)


def cancel(machine: TunnelMachine, places: Places, worker: str, port: int) -> tuple[str, ...]:
    """Tells the connection to close a worker's socket; what runs through it goes on."""
    return (*_control(machine.id, places, "cancel"), "-L", _way(places, worker, port), machine.id)


def check(machine_id: str, places: Places) -> tuple[str, ...]:
    """Succeeds once the connection stands."""
    return (*_control(machine_id, places, "check"), machine_id)


def leave(machine_id: str, places: Places) -> tuple[str, ...]:
    """Ends a connection that a service before this one left behind."""
    return (*_control(machine_id, places, "exit"), machine_id)


def _control(machine_id: str, places: Places, what: str) -> tuple[str, ...]:
    unlink = ("-o", "StreamLocalBindUnlink=yes", "-o", "StreamLocalBindMask=0177", "-o", "LogLevel=ERROR")
    return ("ssh", "-F", "none", *unlink, "-S", str(places.control(machine_id)), "-O", what)


def _way(places: Places, worker: str, port: int) -> str:
    return f"{places.socket(worker)}:127.0.0.1:{port}"


def _algorithms(host_key: str) -> str:
    """Ask for the kind of key that was pinned; an RSA key signs with more than one algorithm."""
    kind = host_key.partition(" ")[0]
    return "rsa-sha2-512,rsa-sha2-256" if kind == "ssh-rsa" else kind
