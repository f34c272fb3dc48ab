"""The queue of several processes: Celery on Redis.

A job that is queued puts one message on its pool's queue; whichever consumer process takes it holds it, in one of
its threads, until the look that it brought, and the job that came of it, have ended. Messages are acknowledged
late, so one that its process takes to the grave is delivered again, after a while. None of that is what keeps a
job: the store does, and the consumers' own looks find whatever no message tells of. Losing Redis costs
milliseconds of waiting, not jobs.

The traps of Celery on Redis, and what is done: the visibility timeout is set in all three places where it is read,
and all keys have a prefix, because the shortest timeout of all that share a broker's keys wins; nothing is ever
sent with an ETA; results are kept nowhere; a lost connection is told as one (`Transport`).
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from celery import Celery
from celery.exceptions import CeleryError, Reject
from kombu.exceptions import KombuError, OperationalError
from kombu.transport import redis

from router.queue import WakeUp
from router.queue.embedded import EmbeddedQueue

log = structlog.get_logger(__name__)

TASK = "letterpress.wake"
VISIBILITY_S = 600
"""After which a message that nobody acknowledged is delivered again; longer than a generation takes."""
HOLD_S = 2.0
"""How long a message waits in its thread for a worker that is idle. Busy ones look by themselves when they are
free, and a thread that waited for a pool without workers would be missing to the others."""
ANNOUNCED_MAX = 256
"""Messages for one announcement: enough to wake everyone who is idle."""
UNSENT_MAX = 10_000
CONNECT_S = 2.0
PUBLISH_S = 5.0
AWAY = (OperationalError, KombuError, CeleryError, OSError)
"""What a broker that does not answer is told by."""


@dataclass(frozen=True, slots=True)
class Broker:
    """`url` is a redis:// one, with its password; `prefix` keeps several stacks on one Redis apart."""

    url: str
    prefix: str

    def __repr__(self) -> str:
        return f"Broker(prefix={self.prefix!r})"


class _Channel(redis.Channel):
    def _connparams(self, asynchronous: bool = False) -> dict[str, object]:
        if getattr(self.connection, "client", None) is None:
            raise ConnectionError("the connection to Redis was lost")
        params: dict[str, object] = super()._connparams(asynchronous)  # type: ignore[misc] # the stubs leave it out
        return params


class Transport(redis.Transport):
    """Kombu's, but for one thing: a message that is given back, or acknowledged, after its connection was lost is told
    so. Kombu's own says that None has no attribute, which nobody expects, and the process ends. (Seen in kombu 5.7.0
    with celery 5.7.0. Such a message is delivered again after VISIBILITY_S, and nobody waits for it.)"""

    Channel = _Channel


def celery_app(broker: Broker) -> Celery:
    """Configured alike for those who send and those who receive."""
    transport_name = f"{__name__}:{Transport.__name__}"
    app = Celery("letterpress", broker=broker.url, broker_transport=transport_name, set_as_current=False)
    transport = {
        "visibility_timeout": VISIBILITY_S,
        "global_keyprefix": broker.prefix,
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": PUBLISH_S * 6,
        "health_check_interval": 10,
    }
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_transport_options=transport,
        result_backend_transport_options={"visibility_timeout": VISIBILITY_S},
        visibility_timeout=VISIBILITY_S,
        broker_connection_timeout=CONNECT_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


def queue_name(pool: str) -> str:
    return f"letterpress.{pool}"


class CeleryQueue:
    """`Queue` over a Celery app. `announce` sends from a thread of its own, so that no broker holds up a request;
    what cannot be sent is dropped and said once."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._here = EmbeddedQueue()
        self._closing = asyncio.Event()
        self._unsent: queue.Queue[str | None] = queue.Queue(UNSENT_MAX)
        self._sender = threading.Thread(target=self._send, name="announcer", daemon=True)
        self._sender.start()

    def announce(self, pool: str, jobs: int = 1) -> None:
        for _ in range(min(jobs, ANNOUNCED_MAX)):
            try:
                self._unsent.put_nowait(pool)
            except queue.Full:
                return  # the broker is away; whoever is idle looks by itself

    async def wait(self, pool: str, who: str, timeout_s: float) -> WakeUp | None:
        return await self._here.wait(pool, who, timeout_s)

    def pass_on(self, pool: str, wake_up: WakeUp, who: str) -> None:
        self._here.pass_on(pool, wake_up, who)

    async def deliver(self, pool: str) -> bool:
        """Hold a message's wake-up until it is done. False: this process stops, somebody else should have it."""
        if self._closing.is_set():
            return False
        done = asyncio.Event()
        wake_up = WakeUp(done=done.set)
        self._here.offer(pool, wake_up)
        waits = [asyncio.create_task(done.wait()), asyncio.create_task(self._closing.wait())]
        try:
            await asyncio.wait(waits, timeout=HOLD_S, return_when=asyncio.FIRST_COMPLETED)
            if not done.is_set() and not self._here.take_back(pool, wake_up):
                await done.wait()  # somebody is at work on it
                return True
            return done.is_set() or not self._closing.is_set()
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def stop_receiving(self) -> None:
        """Messages that nobody works on go back to the broker."""
        self._closing.set()

    def close(self) -> None:
        """Send what is left, if that is quick."""
        self._unsent.put(None)
        self._sender.join(PUBLISH_S)

    def _send(self) -> None:
        away = False
        while (pool := self._unsent.get()) is not None:
            try:
                self._app.send_task(TASK, args=(pool,), queue=queue_name(pool), ignore_result=True, retry=False)
            except AWAY as error:
                if not away:
                    log.warning("broker_away", error=str(error) or type(error).__name__)
                away = True
                self._forget()  # each would wait for its own time-out
            else:
                away = False

    def _forget(self) -> None:
        try:
            while (pool := self._unsent.get_nowait()) is not None:
                pass
        except queue.Empty:
            return
        self._unsent.put(pool)  # the end


def follow(app: Celery, pool: str) -> bool:
    """Have the consumers of `app` take the messages for a pool that is new, too; False if the broker is away."""
    try:
        app.control.add_consumer(queue_name(pool))
    except AWAY as error:
        log.warning("queue_not_followed", pool=pool, error=str(error) or type(error).__name__)
        return False
    return True


def receiver(app: Celery, deliver: Callable[[str], bool]) -> None:
    """Make `app` hand each message to `deliver`, which blocks its thread; False sends the message back."""

    @app.task(name=TASK, acks_late=True, reject_on_worker_lost=True, ignore_result=True, shared=False)
    def wake(pool: str) -> None:
        if not deliver(pool):
            raise Reject("this consumer stops", requeue=True)
