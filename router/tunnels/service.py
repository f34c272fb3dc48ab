"""Follows the described set of machines: a connection for each, and a file that tells how all of them are.

The description is a file (`router.contract.TunnelMachines`) that whoever provisions machines replaces; it is looked
at every second. A description that cannot be read changes nothing: what is connected stays so.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydantic import ValidationError

from router.contract import SOCKET_PATH_MAX, TUNNEL_SOCKET_MAX, TunnelMachine, TunnelMachines, TunnelsView
from router.errors import RouterError
from router.tunnels import command
from router.tunnels.command import Places
from router.tunnels.connection import Connection

log = structlog.get_logger(__name__)

LOOK_S = 1.0
BEAT_S = 5.0
"""The file is written at least this often: one that is older has no service any more."""
LEAVE_S = 3.0


class TunnelsError(RouterError):
    """The tunnel service cannot run as it was told to."""


class Service:
    """`run` until cancelled; connections end with it."""

    def __init__(self, machines_file: Path, status_file: Path, places: Places, draw: Callable[[], float]) -> None:
        self._machines_file, self._status_file = machines_file, status_file
        self._places, self._draw = places, draw
        self._connections: dict[str, tuple[Connection, asyncio.Task[None]]] = {}
        self._news = asyncio.Event()
        self._trouble = ""
        self._seen: tuple[int, int, int] | None = None

    async def run(self) -> None:
        """Raises TunnelsError if another service has this run directory, or no socket's path fits into it."""
        excess = len(os.fsencode(self._places.run)) + 1 + TUNNEL_SOCKET_MAX - SOCKET_PATH_MAX
        if excess > 0:
            raise TunnelsError(
                f"{self._places.run} is {excess} bytes too long for the sockets that go there (a unix socket's path "
                f"ends at {SOCKET_PATH_MAX}); take a shorter run directory"
            )
        for folder in (self._places.run, self._places.run / command.SOCKETS):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(self._places.lock):
            await self._end_what_was_left()
            try:
                await self._follow()
            finally:
                for _, task in self._connections.values():
                    task.cancel()
                await asyncio.gather(*(task for _, task in self._connections.values()), return_exceptions=True)

    async def _follow(self) -> None:
        written = 0.0
        while True:
            self._reconcile()
            now = asyncio.get_running_loop().time()
            if self._news.is_set() or now - written >= BEAT_S:
                self._news.clear()
                self._write()
                written = now
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()

    def _reconcile(self) -> None:
        described = self._described()
        if described is None:
            return
        wanted = {machine.id: machine for machine in described}
        for name in self._connections.keys() - wanted.keys():
            self._connections.pop(name)[1].cancel()
            log.info("tunnel_forgotten", machine=name)
        for name, machine in wanted.items():
            known = self._connections.get(name)
            if known is not None and known[0].same_way(machine):
                if known[0].machine != machine:
                    known[0].describe(machine)
                continue
            after = None if known is None else known[1]
            if after is not None:
                after.cancel()
            connection = Connection(machine, self._places, self._news.set, self._draw)
            self._connections[name] = connection, asyncio.create_task(_after(after, connection))
        self._news.set()

    def _described(self) -> list[TunnelMachine] | None:
        """What the file says, if it says something new that can be followed."""
        try:
            found = self._machines_file.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen == self._seen:
                return None
            self._seen = seen
            machines = TunnelMachines.model_validate_json(self._machines_file.read_bytes()).machines
        except FileNotFoundError:
            self._complain(f"{self._machines_file} is not there; nothing is changed until it is")
            self._seen = None
            return None
        except (OSError, ValidationError) as error:
            why = (
                "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5])
                if (isinstance(error, ValidationError))
                else str(error)
            )
            self._complain(f"{self._machines_file} cannot be followed, and nothing is changed: {why}")
            return None
        twice = _twice([machine.id for machine in machines]) or _twice(
            [worker for machine in machines for worker in machine.workers]
        )
        if twice:
            self._complain(f"{self._machines_file} names {twice} twice, and nothing is changed")
            return None
        self._complain("")
        return machines

    def _complain(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("machines_not_followed", trouble=trouble)
        if trouble != self._trouble:
            self._trouble = trouble
            self._news.set()

    def _write(self) -> None:
        """Whole or not at all: the router reads it at any moment."""
        tunnels = [connection.view() for _, (connection, _) in sorted(self._connections.items())]
        view = TunnelsView(written_at=datetime.now(UTC), trouble=self._trouble, tunnels=tunnels)
        draft = self._status_file.with_name(f".{self._status_file.name}.{os.getpid()}")
        draft.write_text(view.model_dump_json())
        draft.replace(self._status_file)

    async def _end_what_was_left(self) -> None:
        """A service that was killed leaves its connections behind; two for one machine would fight for sockets."""
        for control in self._places.run.glob("*.c"):
            ending = await asyncio.create_subprocess_exec(
                *("ssh", "-F", "none", "-S", str(control), "-O", "exit", "left"),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                async with asyncio.timeout(LEAVE_S):
                    await ending.wait()
            except TimeoutError:
                ending.kill()
                await ending.wait()
            control.unlink(missing_ok=True)


async def _after(before: asyncio.Task[None] | None, connection: Connection) -> None:
    """The new connection, once the one that it replaces has let go of its sockets."""
    if before is not None:
        await asyncio.gather(before, return_exceptions=True)
    await connection.run()


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TunnelsError(f"another tunnel service has {path.parent}; stop it first") from None
        yield
