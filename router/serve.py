"""Two apps, one core, one loop: listening, and stopping so that nobody is left hanging.

The public app listens on a unix socket that every user may connect to: the directory it lies in decides who
gets that far. The admin app listens on loopback. When told to stop, the router takes nobody new, answers those
who wait with 503, and leaves the leases: the workers go on, and the next router joins them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.metadata import version
from math import ceil
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from router.admin import admin_app
from router.admin_context import AdminContext
from router.admin_keys import DEFAULT_KEY
from router.api.auth import digest
from router.api.batch_lines import ImageLines
from router.api.context import Context
from router.api.links import Links
from router.api.webhooks import body_of
from router.app import public_app
from router.batches.desk import Desk
from router.batches.keeper import Keeper
from router.core import Core, open_core, open_front
from router.ids import ENTROPY_BYTES, file_id
from router.metrics import Metrics
from router.readiness import Examiner
from router.settings import PREFIX, RouterSettings, SettingsError, read_secret
from router.supervise import forever
from router.webhooks.deliverer import Deliverer
from router.webhooks.post import Poster
from worker.contract import MAX_SEED

_log = structlog.stdlib.get_logger(__name__)

STOP_S = 10
"""Seconds that open answers get to leave when the router stops."""
LET_GO_S = 4.5
"""How long the edge keeps a connection to us that it does not use (`infra.edge.config`), and a little more."""
BACKLOG = 2048


async def serve(settings: RouterSettings) -> None:
    """Run until SIGTERM or SIGINT. Raises SettingsError for what the operator has to change."""
    api_key, admin_key, signing_key = map(
        read_secret, (settings.api_key_file, settings.admin_key_file, settings.signing_key_file)
    )
    with contextlib.ExitStack() as listening:
        # Before the core: a second router must not touch the first one's leases.
        public = listening.enter_context(unix_socket(settings.socket))
        admin = listening.enter_context(loopback_socket(settings.admin_host, settings.admin_port))
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # nobody asks for that second series
        metrics, closing, release = Metrics(), asyncio.Event(), version("letterpress")
        async with _core(settings) as core:
            await core.store.put_api_key(DEFAULT_KEY, digest(api_key))
            examiner = Examiner(core, release, closing.is_set)
            news = asyncio.Event()
            context = Context(
                core=core,
                links=Links(settings.public_base, signing_key.encode(), settings.link_lifetime_s),
                closing=closing,
                draw_seed=lambda: secrets.randbelow(MAX_SEED + 1),
                clock=time.time,
                version=release,
                examiner=examiner,
                aliases=settings.model_aliases,
                batch_news=news.set,
                edge_sends_artifacts=settings.edge_sends_artifacts,
                quota=settings.quota,
                plain_webhooks=bool(settings.webhook_exceptions),
                webhook_exceptions=tuple(settings.webhook_exceptions),
            )
            poster = Poster(settings.webhook_exceptions)
            deliverer = Deliverer(
                core.store.outbox,
                poster,
                partial(body_of, context),
                now=time.time,
                draw=random.random,
                observe=metrics.delivered,
                version=release,
            )
            core.notices.listen(deliverer.heard)
            keeper = Keeper(desk_of(context), news, deliverer.wake)
            loops = [
                asyncio.create_task(forever("batches", keeper.run)),
                asyncio.create_task(forever("webhooks", deliverer.run)),
                asyncio.create_task(forever("old webhooks", deliverer.keep_tidy)),
            ]
            servers = {
                _server(public_app(context, metrics.served), settings.drain_s): public,
                _server(
                    admin_app(
                        AdminContext(
                            core, metrics, admin_key, release, examiner, deliverer.wake, settings.tunnels_status_file
                        )
                    ),
                    settings.drain_s,
                ): admin,
            }
            stop = _Stop(list(servers), closing, settings.socket, settings.drain_s)
            stop.on_signals()
            _log.info(
                "router listens", socket=str(settings.socket), admin=f"{settings.admin_host}:{settings.admin_port}"
            )
            try:
                await asyncio.gather(*(server.serve(sockets=[sock]) for server, sock in servers.items()))
                _log.info("router stops")
            finally:
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)
                poster.close()


def desk_of(context: Context) -> Desk:
    """What batches are worked at with."""
    core = context.core

    def now_ms() -> int:
        return int(context.clock() * 1000)

    return Desk(
        batches=core.store.batches,
        artifacts=core.artifacts,
        words=ImageLines(context),
        bound_of=core.service.bound_of,
        file_id=lambda: file_id(now_ms(), secrets.token_bytes(ENTROPY_BYTES)),
        now_ms=now_ms,
        announce=core.service.announce,
        publish=core.service.publish,
        quota=context.quota,
    )


class _Server(uvicorn.Server):
    """uvicorn's, which two of share a process: signals are ours."""

    def let_go(self) -> None:
        """From now on, each answer ends its connection."""
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]

    @property
    def busy(self) -> bool:
        return bool(self.server_state.tasks)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: FastAPI, drain_s: float) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http="httptools",  # or it would quietly do with less
            lifespan="off",
            log_config=None,
            access_log=False,  # router.api.requests writes one line a request
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=ceil(drain_s) + STOP_S,
        )
    )


def _core(settings: RouterSettings) -> AbstractAsyncContextManager[Core]:
    shared = settings.shared
    return open_core(settings.core) if shared is None else open_front(settings.core, shared)


class _Stop:
    """How a router goes. Alone, it goes at once. Beside another one, it first lets the edge turn to that one: its
    socket's name goes away, while who found it is answered, and told to come no more on the same connection; who
    waits for an image gets it, for `drain_s` seconds."""

    def __init__(self, servers: Sequence[_Server], closing: asyncio.Event, name: Path, drain_s: float) -> None:
        self._servers, self._closing, self._name, self._drain_s = servers, closing, name, drain_s
        self._draining: asyncio.Task[None] | None = None

    def on_signals(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, self._told)

    def _told(self) -> None:
        """Once: with grace. Twice: now."""
        if self._drain_s <= 0 or self._draining is not None:
            self._end()
        else:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        _log.info("router drains", within_s=self._drain_s)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_s
        self._name.unlink(missing_ok=True)
        for server in self._servers:
            server.let_go()
        # Connections that the edge keeps open and has not used since are closed by itself after this.
        await asyncio.sleep(min(LET_GO_S, self._drain_s))
        for server in self._servers:
            server.should_exit = True
        while loop.time() < deadline and any(server.busy for server in self._servers):  # noqa: ASYNC110 - see uvicorn
            await asyncio.sleep(0.1)
        self._end()

    def _end(self) -> None:
        self._closing.set()
        for server in self._servers:
            server.should_exit = True


@contextlib.contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """Listen at `path`, in place of a socket whose router is gone. SettingsError if one still answers there."""
    if _answers(path):
        raise SettingsError(f"{PREFIX}SOCKET: another router listens on {path}; stop it first")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(BACKLOG)
        ours = path.stat().st_ino
    except OSError as error:
        sock.close()
        raise SettingsError(f"{PREFIX}SOCKET: cannot listen on {path}: {error.strerror}") from error
    try:
        yield sock
    finally:
        sock.close()
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == ours:
                path.unlink()


def _answers(path: Path) -> bool:
    if not path.is_socket():
        if path.exists():
            raise SettingsError(f"{PREFIX}SOCKET: {path} is there and is no socket; remove it or choose another path")
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(str(path)) in (errno.ECONNREFUSED, errno.ENOENT)
    return not refused


@contextlib.contextmanager
def loopback_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Listen at `host:port`. SettingsError if somebody else does."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror
            raise SettingsError(f"{PREFIX}ADMIN_PORT: cannot listen on {host}:{port}: {why}") from error
        yield sock
