"""What systemd holds a process to that needs no root: its user, and what is left of the machine for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

LOW_PORTS = "CAP_NET_BIND_SERVICE"


@dataclass(frozen=True, slots=True)
class Confinement:
    """`writes` are all the folders that it may change, besides `runtime`: its own below /run, which outlives it.

    `groups` are more groups of its user. `low_ports`: it may listen below 1024.
    """

    user: str
    runtime: str
    writes: Sequence[PurePath] = ()
    groups: Sequence[str] = ()
    low_ports: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        """Of the `[Service]` section (systemd.exec(5))."""
        return (
            f"User={self.user}",
            f"Group={self.user}",
            *((f"SupplementaryGroups={' '.join(self.groups)}",) if self.groups else ()),
            f"RuntimeDirectory={self.runtime}",
            "RuntimeDirectoryMode=0750",
            "RuntimeDirectoryPreserve=yes",
            *((f"ReadWritePaths={' '.join(map(str, self.writes))}",) if self.writes else ()),
            f"CapabilityBoundingSet={LOW_PORTS if self.low_ports else ''}",
            *((f"AmbientCapabilities={LOW_PORTS}",) if self.low_ports else ()),
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "ProtectHome=yes",
            "PrivateTmp=yes",
            "PrivateDevices=yes",
            "ProtectClock=yes",
            "ProtectControlGroups=yes",
            "ProtectHostname=yes",
            "ProtectKernelLogs=yes",
            "ProtectKernelModules=yes",
            "ProtectKernelTunables=yes",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
            "RestrictNamespaces=yes",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "LockPersonality=yes",
            "RemoveIPC=yes",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service",
            "LimitNOFILE=16384",
        )
