"""What steps are told: the machine they work on, and what it should become."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from infra.clouds import HostKind
from infra.hosts import Progress
from infra.ssh.connection import Connection


@dataclass(frozen=True, slots=True)
class Described:
    """What a machine was described to have. `gpu` is a part of the model's name, empty for any."""

    gpus: int
    gpu: str = ""
    gpu_memory_gib: float = 0.0
    disk_gib: float = 0.0
    download_mbit_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WantedImage:
    """The worker's image: `tag` is what it is called on the machine. One of `pull`, `archive`, or it is built there."""

    tag: str
    pull: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    archive: Path | None = None
    build_args: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class WantedWeights:
    """`repository` of the hub; empty where nothing has to be fetched (tiny weights, a folder of the machine)."""

    repository: str = ""
    accepted: bool = False
    token: str = field(default="", repr=False)
    endpoint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Any machine on its way. `root` is the stack's folder there."""

    connection: Connection
    kind: HostKind
    root: PurePosixPath
    stack_id: str
    progress: Progress

    @property
    def name(self) -> str:
        return self.connection.target.shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine(Place):
    """One that is to run workers. `cache` is the folder of weights and compiled kernels.

    `tunnel_line` is the whole line of authorized_keys that lets the tunnel service forward to the workers.
    """

    cache: PurePosixPath
    described: Described
    image: WantedImage
    weights: WantedWeights
    tunnel_line: str
