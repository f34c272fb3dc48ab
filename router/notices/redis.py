"""Notices between processes: Redis pub/sub, which forgets whatever nobody hears.

What travels is only that something is new: a job's id, a step's number. Whoever watches the job asks the store. A
notice that is lost, because Redis was away, costs those who watch the time until their next look.

Not PostgreSQL's NOTIFY: a transaction that notifies takes a lock of the whole database at its commit, and every
step of every generation would (docs/adr).
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from router.contract import JobState, Progress
from router.errors import StoreUnavailableError
from router.jobs import Job
from router.notices import Notices
from router.store import Store

log = structlog.get_logger(__name__)

CONNECT_S = 2.0
SILENCE_S = 10.0
"""Between two looks at whether the connection still lives."""
LONGEST_PAUSE_S = 5.0
UNSENT_MAX = 10_000


class _Notice(BaseModel):
    """One message: what a job is now, or a step of it, or (`asked`) that its owner wants something of its driver."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    origin: str
    job: str
    state: JobState | None = None
    attempt: int = 0
    progress: Progress | None = None
    asked: bool = False


class RedisNotices(Notices):
    """The hub of this process, joined with those of all others on the same channel."""

    def __init__(self, url: str, channel: str, store: Store) -> None:
        super().__init__()
        self._redis = Redis.from_url(
            url, socket_connect_timeout=CONNECT_S, socket_timeout=CONNECT_S, health_check_interval=int(SILENCE_S)
        )
        self._channel, self._store = channel, store
        self._origin = secrets.token_hex(8)
        self._unsent: asyncio.Queue[_Notice] = asyncio.Queue(UNSENT_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self.joined = asyncio.Event()
        """Set while this process hears the others."""

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._hear_for_ever()), asyncio.create_task(self._send())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    def show(self, job: Job) -> None:
        super().show(job)
        self._tell_others(_Notice(origin=self._origin, job=job.id, state=job.state, attempt=job.attempt))

    def progress(self, job_id: str, progress: Progress) -> None:
        super().progress(job_id, progress)
        self._tell_others(_Notice(origin=self._origin, job=job_id, progress=progress))

    def ask(self, job_id: str) -> None:
        super().ask(job_id)
        self._tell_others(_Notice(origin=self._origin, job=job_id, asked=True))

    def _tell_others(self, notice: _Notice) -> None:
        with suppress(asyncio.QueueFull):
            self._unsent.put_nowait(notice)

    async def _send(self) -> None:
        while True:
            notice = await self._unsent.get()
            try:
                await self._redis.publish(self._channel, notice.model_dump_json(exclude_defaults=True))
            except (RedisError, OSError):
                while not self._unsent.empty():  # old news, each with a time-out of its own
                    self._unsent.get_nowait()

    async def _hear_for_ever(self) -> None:
        pause_s = 0.1
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=False) as channel:
                    await channel.subscribe(self._channel)
                    while True:
                        message = await channel.get_message(timeout=SILENCE_S)
                        if message is None:
                            await channel.ping()
                        elif message["type"] == "subscribe":
                            self.joined.set()
                            pause_s = 0.1
                        elif message["type"] == "message":
                            await self._hear(message["data"])
            except (RedisError, OSError) as error:
                if self.joined.is_set():
                    log.warning("notices_cut_off", error=str(error) or type(error).__name__)
                self.joined.clear()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _hear(self, data: bytes) -> None:
        try:
            notice = _Notice.model_validate_json(data)
        except ValidationError:
            log.warning("notice_not_understood", notice=data[:200])
            return
        if notice.origin == self._origin:
            return
        if notice.asked:
            super().ask(notice.job)
        if notice.progress is not None:
            super().progress(notice.job, notice.progress)
        if notice.state is not None:
            self.over(notice.job, notice.state, notice.attempt)
            if self.news({notice.job: (notice.state, notice.attempt)}):
                with suppress(StoreUnavailableError):  # those who watch are looked up for
                    job = await self._store.job(notice.job)
                    if job is not None:
                        self.found(job)
