"""Where a stack keeps its run-time state, and where its sockets go.

Everything lasting lies in `.letterpress/<stack>/` beside the Makefile (ignored by git). Sockets cannot:
a unix socket's path ends at 107 bytes, so they live in a short run directory that is named after the
stack and a digest of its folder. `LETTERPRESS_HOME` moves the former, `LETTERPRESS_RUN` the latter.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from infra.errors import InfraError

SOCKET_PATH_MAX = 107
"""`sun_path` holds 108 bytes with its closing zero (unix(7))."""
SOCKET_NAME_MAX = 16
"""How long the name of a socket in the run directory may be. Tunnels want more (`infra.hosts.layout`)."""

HOME = "LETTERPRESS_HOME"
RUN = "LETTERPRESS_RUN"


class PathsError(InfraError):
    """A folder of a stack cannot be had; the message says why, and how to choose another."""


def repository_root() -> Path:
    """The checkout that this package runs from: it holds `stacks/`, and `.letterpress/` by default."""
    return Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class StackPaths:
    """The folders of one stack. Nothing is made until `create`."""

    root: Path
    run: Path

    @classmethod
    def of(cls, stack: str, home: Path | None = None) -> StackPaths:
        """Paths of the stack named `stack`; `home` defaults to `LETTERPRESS_HOME` or `.letterpress`.

        Raises PathsError if no socket's path would fit into `LETTERPRESS_RUN`.
        """
        home = home or Path(os.environ.get(HOME) or repository_root() / ".letterpress")
        root = home.resolve() / stack
        digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
        paths = cls(root=root, run=_run_base() / f"{stack[:20]}-{digest}")
        paths.require_room(SOCKET_NAME_MAX)
        return paths

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def machines(self) -> Path:
        """The local cloud's machines, one folder each."""
        return self.root / "machines"

    @property
    def router(self) -> Path:
        """The router host's folder: its units, data and edge configuration."""
        return self.root / "router"

    @property
    def known_hosts(self) -> Path:
        """The host keys of machines that are reached through SSH (`infra.ssh.pins`)."""
        return self.root / "known_hosts"

    @property
    def pulumi(self) -> Path:
        """The default file backend of the Pulumi engine."""
        return self.root / "pulumi"

    def require_room(self, below: int) -> None:
        """Raise PathsError if a socket whose path below the run directory has `below` bytes would not fit."""
        excess = len(os.fsencode(self.run)) + 1 + below - SOCKET_PATH_MAX
        if excess > 0:
            raise PathsError(
                f"{RUN}: {self.run.parent} is {excess} bytes too long for the sockets that go there (a unix socket's "
                f"path ends at {SOCKET_PATH_MAX}); set it to a shorter path of your own"
            )

    def create(self) -> None:
        """Make the folders, readable by their owner alone."""
        for folder in (self.root, self.secrets, self.logs, self.machines, self.router, self.pulumi):
            _make(folder, 0o700, HOME)
        _make(self.run.parent, 0o711, RUN)
        _require_own(self.run.parent)
        # Whoever may enter can connect to the sockets in it. `infra.edge.nginx` lets the edge's own user in.
        _make(self.run, 0o700, RUN)


def _run_base() -> Path:
    """A short directory of our own.

    Not `$XDG_RUNTIME_DIR`: it goes with its user's last login session, and the stack outlives that.
    """
    override = os.environ.get(RUN)
    if override:
        return Path(os.path.abspath(override))  # noqa: PTH100 - resolve() would follow a link, which is refused
    uid = os.getuid()
    return Path("/run/letterpress") if uid == 0 else Path(f"/tmp/letterpress-{uid}")  # noqa: S108 - checked when made


def _make(folder: Path, mode: int, setting: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise PathsError(f"{folder} cannot be had: {error.strerror}{_in_whose_way(folder, setting)}") from None


def _require_own(path: Path) -> None:
    """Refuse a directory that somebody else laid there first (anyone may write to /tmp)."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        trouble = "is a link or a file"
    elif found.st_uid != os.getuid():
        trouble = f"belongs to {_user(found.st_uid)}"
    elif found.st_mode & 0o022:
        trouble = "can be written to by others"
    else:
        return
    raise PathsError(
        f"{path} {trouble}, and must be a directory that only you can write to; remove it, or set {RUN} to a short "
        "path of your own"
    )


def _in_whose_way(folder: Path, setting: str) -> str:
    """Whose is the nearest thing that is there, and what to do about it."""
    for there in (folder, *folder.parents):
        try:
            owner = there.lstat().st_uid
        except OSError:
            continue
        if owner == os.getuid():
            break
        return f"; {there} belongs to {_user(owner)}. Do this as that user, or set {setting} to a folder of your own"
    return f"; set {setting} to a folder that you can write to"


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
