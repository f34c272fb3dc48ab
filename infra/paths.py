"""Where a stack keeps its run-time state, and where its sockets go.

Everything lasting lies in `.letterpress/<stack>/` beside the Makefile (ignored by git). Sockets cannot:
a unix socket's path ends at 107 bytes, so they live in a short run directory that is named after the
stack and a digest of its folder. `LETTERPRESS_HOME` moves the former, `LETTERPRESS_RUN` the latter.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

SOCKET_PATH_MAX = 107
"""`sun_path` holds 108 bytes with its closing zero (unix(7))."""


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
        """Paths of the stack named `stack`; `home` defaults to `LETTERPRESS_HOME` or `.letterpress`."""
        home = home or Path(os.environ.get("LETTERPRESS_HOME") or repository_root() / ".letterpress")
        root = home.resolve() / stack
        digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
        return cls(root=root, run=_run_base() / f"{stack[:20]}-{digest}")

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
    def pulumi(self) -> Path:
        """The default file backend of the Pulumi engine."""
        return self.root / "pulumi"

    def create(self) -> None:
        """Make the folders, readable by their owner alone."""
        for folder in (self.root, self.secrets, self.logs, self.machines, self.router, self.pulumi):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _own_directory(self.run.parent)
        # Whoever may enter can connect to the sockets in it. `infra.nginx` lets the edge's own user in.
        self.run.mkdir(exist_ok=True, mode=0o700)


def _run_base() -> Path:
    """A short directory of our own.

    Not `$XDG_RUNTIME_DIR`: it goes with its user's last login session, and the stack outlives that.
    """
    override = os.environ.get("LETTERPRESS_RUN")
    if override:
        return Path(override)
    uid = os.getuid()
    return Path("/run/letterpress") if uid == 0 else Path(f"/tmp/letterpress-{uid}")  # noqa: S108 - checked when made


def _own_directory(path: Path) -> None:
    """Make `path`, or refuse one that somebody else laid there first (anyone may write to /tmp)."""
    path.mkdir(parents=True, exist_ok=True, mode=0o711)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(
            f"{path} is not a directory that only you can write to; remove it, or set LETTERPRESS_RUN to a short "
            "path of your own"
        )
