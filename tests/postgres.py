"""A real PostgreSQL for tests: a cluster in a folder of its own, on a unix socket there, run by an ordinary user.

PostgreSQL refuses to run as root; where the tests are root, it runs as the user that its package brought.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.setup.for_tests import find_postgres
from tests.waiting import eventually

PACKAGED_USER = "postgres"
START_S = 60
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "autovacuum": "off"}
"""For tests that kill nothing: an operating system that stays up loses no write. No vacuum visits the template while
it is to be copied, which none may."""


@dataclass
class Postgres:
    """One cluster. `options` are settings of postgresql.conf."""

    programs: Path
    folder: Path
    user: str
    options: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    names: Iterator[int] = field(default_factory=itertools.count)

    def url(self, database: str) -> str:
        return f"postgresql+asyncpg://{self.user}@/{database}?host={self.folder}"

    def create(self, template: str = "template1") -> str:
        """The URL of a new database, empty or a copy of `template`."""
        name = f"test_{next(self.names)}"
        self.sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        return self.url(name)

    def sql(self, statement: str, database: str = "postgres") -> str:
        done = self._run("psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statement)
        return done.stdout.decode().strip()

    def start(self) -> None:
        """Begin, and wait until it answers."""
        options = [word for name, value in self.options.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "data", "-k", self.folder, *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=self._uid,
                group=self._gid,
                extra_groups=self._groups,
            )
        process = self.process

        def answers() -> bool:
            assert process.poll() is None, f"PostgreSQL ended:\n{self.log}"
            asked = [str(self.programs / "pg_isready"), "-q", "-h", str(self.folder)]
            return subprocess.run(asked, check=False).returncode == 0

        eventually(answers, START_S, f"PostgreSQL answers:\n{self.log}")

    def stop(self, by: signal.Signals = signal.SIGQUIT) -> None:
        """SIGTERM waits for clients, SIGINT ends them, SIGQUIT recovers at the next start, SIGKILL kills it all."""
        if self.process is None:
            return
        others: list[int] = []
        if by is signal.SIGKILL:
            # Its processes would outlive the first one until they notice; a power cut takes them all. Stopped, the
            # first one begins no more of them meanwhile.
            self.process.send_signal(signal.SIGSTOP)
            asked = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
            others = [int(pid) for pid in asked.stdout.split()]
            for pid in others:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.send_signal(by)
        self.process.wait(START_S)
        # A new server refuses to start while one of them still holds the old one's memory.
        eventually(lambda: not any(map(_lives, others)), START_S, "PostgreSQL's processes are gone")
        self.process = None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def initialise(self) -> None:
        self._run("initdb", "-D", str(self.folder / "data"), "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        environment = {"PATH": os.defpath, "PGHOST": str(self.folder), "PGUSER": self.user, "LC_ALL": "C"}
        done = subprocess.run(
            [self.programs / program, *arguments],
            capture_output=True,
            check=False,
            timeout=START_S,
            env=environment,
            cwd=self.folder,
            user=self._uid,
            group=self._gid,
            extra_groups=self._groups,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr.decode()}"
        return done

    @property
    def _uid(self) -> int | None:
        return pwd.getpwnam(self.user).pw_uid if os.geteuid() == 0 else None

    @property
    def _gid(self) -> int | None:
        return pwd.getpwnam(self.user).pw_gid if os.geteuid() == 0 else None

    @property
    def _groups(self) -> list[int] | None:
        return [] if os.geteuid() == 0 else None


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def postgres(**options: str) -> Iterator[Postgres]:
    """A cluster that runs, and is gone at the end. Skips the test where PostgreSQL is not to be had."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed, and `letterpress setup --tests` could not install it")
    user = PACKAGED_USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="lp-pg-"))  # short: a unix socket's path ends at 107 bytes
    if os.geteuid() == 0:
        shutil.chown(folder, user)
    server = Postgres(programs, folder, user, {"listen_addresses": "", "shared_buffers": "32MB", **options})
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
