"""One machine's connection: begun, watched, given its workers' forwards, begun again when it is lost."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import monotonic

import structlog

from router.contract import ForwardView, TunnelMachine, TunnelState, TunnelView
from router.tunnels import command
from router.tunnels.backoff import STEADY_S, Failure, explain, pause_s
from router.tunnels.command import Places

log = structlog.get_logger(__name__)

TOLD_S = 5.0
"""How long ssh may take to do as its control socket is told."""
STANDS_S = 2.0 * command.CONNECT_S
"""How long a connection may take to stand: TCP, keys, authentication."""
LOOK_S = 0.05
STOP_S = 3.0
LAST_LINES = 20


@dataclass(frozen=True, slots=True)
class Now:
    """What the tunnel is, for those who look. `forwards` holds what is wrong with each open way; empty if nothing."""

    state: TunnelState = TunnelState.CONNECTING
    reason: str = ""
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    failures: int = 0
    forwards: Mapping[str, str] = field(default_factory=dict)


class Connection:
    """`changed` is called whenever `view` would say something else. `run` is to be cancelled to end it."""

    def __init__(
        self, machine: TunnelMachine, places: Places, changed: Callable[[], None], draw: Callable[[], float]
    ) -> None:
        self.machine = machine
        self._places, self._changed, self._draw = places, changed, draw
        self._now = Now()
        self._asked: dict[str, int] = {}
        """The ways that ssh was told to open, also those of which it said no or nothing: they may be open yet."""
        self._described = asyncio.Event()

    def view(self) -> TunnelView:
        now = self._now
        return TunnelView(
            machine=self.machine.id,
            state=now.state,
            reason=now.reason,
            since=now.since,
            failures=now.failures,
            forwards=[
                ForwardView(
                    worker=worker,
                    socket=str(self._places.socket(worker)),
                    port=port,
                    up=now.state is TunnelState.UP and now.forwards.get(worker) == "",
                    reason=now.forwards.get(worker, "") if now.state is TunnelState.UP else "",
                )
                for worker, port in sorted(self.machine.workers.items())
            ],
        )

    def same_way(self, machine: TunnelMachine) -> bool:
        """Whether `machine` is reached as this one is, whatever its workers are."""
        return machine.model_copy(update={"workers": {}}) == self.machine.model_copy(update={"workers": {}})

    def describe(self, machine: TunnelMachine) -> None:
        """Other workers, on the same machine: only their sockets come and go."""
        self.machine = machine
        self._described.set()

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            self._become(state=TunnelState.CONNECTING, failures=failures)
            begun = monotonic()
            failure = await self._once()
            failures = 1 if monotonic() - begun > STEADY_S else failures + 1
            self._become(state=failure.state, reason=failure.reason, failures=failures, forwards={})
            log.warning("tunnel_lost", machine=self.machine.id, reason=failure.reason, failures=failures)
            await asyncio.sleep(pause_s(failure, failures, self._draw()))

    async def _once(self) -> Failure:
        """One connection, from its beginning to its end; why it ended."""
        self._places.known_hosts(self.machine.id).write_text(command.known_hosts(self.machine))
        self._places.control(self.machine.id).unlink(missing_ok=True)
        self._asked = {}
        try:
            ssh = await asyncio.create_subprocess_exec(
                *command.connect(self.machine, self._places), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
            )
            assert ssh.stderr is not None  # noqa: S101 - by PIPE
        except OSError as error:
            return Failure(f"ssh cannot be started: {error.strerror}; install openssh-client")
        said: deque[str] = deque(maxlen=LAST_LINES)
        hearing = asyncio.create_task(_hear(ssh.stderr, said))
        keeping = asyncio.create_task(self._keep())
        try:
            await asyncio.wait({hearing, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if keeping.done() and not hearing.done():
                return keeping.result()
            await ssh.wait()
            return explain(self.machine.id, "\n".join(said), ssh.returncode)
        finally:
            keeping.cancel()
            await _end(ssh)
            await asyncio.gather(keeping, hearing, return_exceptions=True)

    async def _keep(self) -> Failure:
        """Wait until it stands, then keep its forwards as described; returns only if it never stands."""
        try:
            async with asyncio.timeout(STANDS_S):
                # Asked again and again: ssh says nothing of its own when it stands.
                while (await self._tell(command.check(self.machine.id, self._places))) is not None:  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            return Failure(f"{self.machine.id}: no connection within {STANDS_S:g} s")
        log.info("tunnel_up", machine=self.machine.id)
        failed = 0
        while True:
            self._described.clear()
            await self._follow()
            closed = [reason for reason in self._now.forwards.values() if reason]
            failed = failed + 1 if closed else 0
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s(Failure(closed[0]), failed, self._draw()) if closed else None):
                    await self._described.wait()
                    failed = 0

    async def _follow(self) -> None:
        wrong = dict(self._now.forwards)
        for worker, port in list(self._asked.items()):
            if self.machine.workers.get(worker) != port:
                await self._tell(command.cancel(self.machine, self._places, worker, port))
                with suppress(IsADirectoryError):  # what was in the way of a socket
                    self._places.socket(worker).unlink(missing_ok=True)
                del self._asked[worker]
                wrong.pop(worker, None)
        for worker, port in self.machine.workers.items():
            if wrong.get(worker, "not asked for") != "":
                self._asked[worker] = port
                # To ssh, a way that is open already is one that it has opened.
                wrong[worker] = await self._begin(worker, port)
        self._become(state=TunnelState.UP, reason="", failures=0, forwards=wrong)

    async def _begin(self, worker: str, port: int) -> str:
        """Open a worker's way; what is wrong, or nothing."""
        path = self._places.socket(worker)
        wrong = await self._tell(command.forward(self.machine, self._places, worker, port))
        if wrong is not None:
            return f"the socket {path} cannot be opened: {wrong}"
        return ""

    async def _tell(self, argv: tuple[str, ...]) -> str | None:
        """None if ssh did as told, and its words if it did not."""
        teller = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
        try:
            async with asyncio.timeout(TOLD_S):
                out, err = await teller.communicate()
        except TimeoutError:
            return "ssh did not answer"
        finally:
            await _end(teller)
        return None if teller.returncode == 0 else (err or out).decode(errors="replace").strip() or "it did not say why"

    def _become(self, **what: object) -> None:
        before = self._now
        after = replace(before, **what)  # type: ignore[arg-type]  # named by Now's own fields
        if after.state is not before.state:
            after = replace(after, since=datetime.now(UTC))
        self._now = after
        if after != before:
            self._changed()


async def _hear(stderr: asyncio.StreamReader, said: deque[str]) -> None:
    """Its last lines, until it ends."""
    while line := await stderr.readline():
        said.append(line.decode(errors="replace").rstrip())


async def _end(process: Process) -> None:
    """Gone when this returns."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
