"""`python -m router.consume`: drives workers for routers that only accept, wait and answer.

One Celery process a router host. Celery's own loop has the main thread and takes messages from Redis; the core has
an event loop in a thread of its own; each message waits in one of Celery's threads for the core to be done with it.
At SIGTERM nothing new is taken and what runs is finished; what a killed one held, the next of its name joins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import warnings
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import structlog
import uvloop
from celery import Celery, signals
from celery.exceptions import SecurityWarning

from router.allocator import keep_freed_memory
from router.contract import BATCH, INTERACTIVE
from router.core import Consumer, Shared, open_consumer
from router.errors import RouterError
from router.logs import configure
from router.queue.celery import follow, queue_name, receiver
from router.settings import PREFIX, ConsumerSettings, SettingsError, read_consumer_settings

log = structlog.get_logger(__name__)
T = TypeVar("T")

START_S = 60.0
POOLS_EVERY_S = 2.0


class _Loop:
    """An event loop in a thread."""

    def __enter__(self) -> Self:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="core")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def begin(self, doing: Coroutine[object, object, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(doing, self._loop)

    def run(self, doing: Coroutine[object, object, T]) -> T:
        return self.begin(doing).result()


class _Core:
    """The core for the length of the process, opened and closed within its loop."""

    def __init__(self, settings: ConsumerSettings, shared: Shared) -> None:
        self._settings, self._shared = settings, shared
        self.opened: Future[Consumer] = Future()
        self.close: asyncio.Event

    async def live(self) -> None:
        self.close = asyncio.Event()
        try:
            async with open_consumer(self._settings.core, self._shared, self._settings.consumer_name) as consumer:
                self.opened.set_result(consumer)
                await self.close.wait()
        except BaseException as error:  # whatever it is: who waits for the opening is in another thread
            if not self.opened.done():
                self.opened.set_exception(error)
                return
            raise


def consume(settings: ConsumerSettings) -> int:
    """Until SIGTERM. The exit status: Celery's. SettingsError if there is no Redis to receive from."""
    shared = settings.shared
    if shared is None:
        raise SettingsError(f"{PREFIX}REDIS_URL: is not set; a consumer is told there what waits")
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _Loop() as loop:
        core = _Core(settings, shared)
        living = loop.begin(core.live())
        consumer = core.opened.result(START_S)
        try:
            receiver(consumer.app, lambda pool: loop.run(consumer.queue.deliver(pool)))
            return _receive(consumer, loop, settings)
        finally:
            # What was begun without a message (a look of a worker's own) is finished, too.
            finishing = loop.begin(consumer.fleet.finish())
            try:
                finishing.result(settings.consumer_stop_s)
            except TimeoutError:
                log.warning(
                    "left_unfinished", why=f"not within {settings.consumer_stop_s:g} s; the next consumer joins it"
                )
            loop.run(_set(core.close))
            living.result()


async def _set(event: asyncio.Event) -> None:
    event.set()


def _receive(consumer: Consumer, loop: _Loop, settings: ConsumerSettings) -> int:
    """Celery's part: take messages for the pools that there are, until it is told to stop."""
    pools = loop.run(_pools(consumer))

    @signals.setup_logging.connect(weak=False)
    def ours(**_: object) -> None:
        """Whoever listens to this keeps Celery from setting the logs up its own way."""

    worker = consumer.app.Worker(
        pool="threads",
        concurrency=settings.consumer_threads,
        hostname=f"{settings.consumer_name}@letterpress",
        queues=[queue_name(pool) for pool in sorted(pools)],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
        quiet=True,
    )
    stopping = threading.Event()

    @signals.worker_shutting_down.connect(weak=False)
    def stop(**_: object) -> None:
        stopping.set()
        loop.begin(_stop(consumer))

    @signals.worker_ready.connect(weak=False)
    def ready(**_: object) -> None:
        log.info("consumer_takes_jobs", consumer=settings.consumer_name, pools=sorted(pools))

    follower = threading.Thread(
        target=partial(_follow_pools, consumer, loop, pools, stopping), name="pools", daemon=True
    )
    follower.start()
    worker.start()
    return int(worker.exitcode or 0)


async def _pools(consumer: Consumer) -> set[str]:
    return {INTERACTIVE, BATCH} | {view.pool for view in consumer.fleet.views()}


async def _stop(consumer: Consumer) -> None:
    consumer.queue.stop_receiving()
    await consumer.fleet.finish()


def _follow_pools(consumer: Consumer, loop: _Loop, known: set[str], stopping: threading.Event) -> None:
    """A pool that is new to the fleet gets its queue; until then its workers' own looks find its jobs."""
    app: Celery = consumer.app
    while not stopping.wait(POOLS_EVERY_S):
        for pool in sorted(loop.run(_pools(consumer)) - known):
            if follow(app, pool):
                known.add(pool)


def main() -> int:
    """The exit status: as `python -m router`'s."""
    os.umask(0o077)
    keep_freed_memory()
    # It runs as whoever runs the router; Celery's warning is about pickled messages, which are not accepted.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    try:
        settings = read_consumer_settings()
        configure(settings.log_format)
        logging.getLogger("celery").setLevel(logging.WARNING)
        return consume(settings)
    except RouterError as error:
        print(f"the consumer cannot start:\n{error}", file=sys.stderr)
        return os.EX_CONFIG if isinstance(error, SettingsError) else os.EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
