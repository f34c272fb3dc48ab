"""Runs a job on a worker under a lease: the only code that does.

PUT, follow the events, renew the lease meanwhile, fetch the image, check its digest, store it, commit; or
end the attempt with the reason. Who gets which job is the store's choice, when a worker is asked is the
fleet's, and what becomes of a job after an attempt is `router.jobs.after`.

Cancelling `drive` ends nothing: lease and generation stay as they are, for the next router to join.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import TypeVar, assert_never

import structlog

from router.artifacts import Artifacts
from router.contract import JobState, Progress
from router.errors import (
    ArtifactError,
    StoreUnavailableError,
    WorkerError,
    WorkerProtocolError,
    WorkerRefusedError,
    WorkerSilentError,
    WorkerUnauthorizedError,
    WorkerUnavailableError,
    WorkerUnreachableError,
)
from router.jobs import AttemptEnd, Image, Job, Lease
from router.notices import Notices
from router.queue import Queue
from router.recent import RecentImages
from router.store import Renewal, Store
from router.worker_client import Event, FetchedImage, WorkerClient
from worker.contract import Accepted, Failed, FailureType, Finished, Started, Step, Timings

log = structlog.get_logger(__name__)
T = TypeVar("T")

REJOINS = 2
"""How often a stream, and then an image, whose connection broke is asked for again within one attempt:
the generation does not depend on it."""
CALL_OFF_S = 2.0
"""How long a worker may take to hear that its generation is called off."""
ARTIFACT_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Between two tries to store an image, as long as its lease is renewed. What keeps a disk or a bucket from taking it
is often over within half a minute, and an image that is thrown away is a GPU's work."""
KEEP_S = 60.0
"""For all tries together: a bucket's client tries again by itself, for half a minute each time, and a process that is
told to stop waits two minutes for what it drives (`consumer_stop_s`)."""
STORE_PAUSE_S = 1.0
"""Between two tries to write the end of an attempt while the database does not answer."""


@dataclass(frozen=True, slots=True)
class Made:
    """The image is stored, and not yet committed."""

    image: Image
    timings: Timings


@dataclass(frozen=True, slots=True)
class Unmade:
    """The attempt came to nothing. `error` is the worker's, if the worker is to blame."""

    end: AttemptEnd
    detail: str
    error: WorkerError | None = None
    unkept: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the fleet learns. `end` is None if the attempt was no longer ours to end; `waited` says that the worker
    had accepted it and was not at work on it yet, but at the one before it; `unkept` that it has made the image, and
    the image could not be stored."""

    end: AttemptEnd | None
    error: WorkerError | None = None
    waited: bool = False
    unkept: bool = False


def _unobserved(_event: Event) -> None:
    pass


@dataclass(slots=True)
class _Seen:
    """What the events of one attempt have told so far, however often its stream was joined."""

    observe: Callable[[Event], None]
    answered: bool = False
    """In the stream that is listened to now."""
    accepted: bool = False
    started: bool = False

    @property
    def waited(self) -> bool:
        return self.accepted and not self.started

    def see(self, event: Event) -> None:
        self.answered = self.accepted = True
        self.started = self.started or not isinstance(event, Accepted)
        self.observe(event)


def unmade_by(failed: Failed) -> Unmade:
    """How an attempt ends whose generation the worker reports as failed."""
    match failed.type:
        case FailureType.INVALID_REQUEST:
            end = AttemptEnd.REFUSED
        case FailureType.DRAINING | FailureType.TOO_LARGE:  # it said that it had room for more, and has less now
            end = AttemptEnd.RETURNED
        case FailureType.CANCELLED:
            end = AttemptEnd.LOST  # not by this router, or it would not listen any more
        case FailureType.OUT_OF_MEMORY | FailureType.ENGINE_ERROR:
            end = AttemptEnd.CRASHED if failed.retryable else AttemptEnd.REFUSED
        case _:
            assert_never(failed.type)
    return Unmade(end, failed.detail)


def _stopped_by(renewal: Renewal) -> Unmade | None:
    """Why a lease is not renewed any more; None if its attempt is not ours to end."""
    return Unmade(AttemptEnd.CANCELLED, "cancelled by its owner") if renewal is Renewal.CANCEL else None


class Dispatcher:
    """Everything that driving needs besides a lease and a worker."""

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        notices: Notices,
        queue: Queue,
        lease_ttl_ms: int,
        recent: RecentImages,
        artifact_pauses_s: Sequence[float] = ARTIFACT_PAUSES_S,
        keep_s: float = KEEP_S,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._notices = notices
        self._queue = queue
        self._recent = recent
        self._artifact_pauses_s, self._keep_s = artifact_pauses_s, keep_s
        self._ttl_ms = lease_ttl_ms
        self._hurried: dict[str, asyncio.Event] = {}
        notices.on_ask(self.hurry)

    def hurry(self, job_id: str) -> None:
        """The job's owner has asked for something (a cancellation): look at once, not at the next renewal."""
        if job_id in self._hurried:
            self._hurried[job_id].set()

    async def drive(
        self, lease: Lease, worker: WorkerClient, observe: Callable[[Event], None] = _unobserved
    ) -> Outcome:
        """Run the leased job on `worker` until the attempt has ended; `observe` is told every event of it."""
        self._hurried[lease.job_id] = hurried = asyncio.Event()
        seen = _Seen(observe)
        making = asyncio.create_task(self._make(lease, worker, seen))
        holding = asyncio.create_task(self._hold(lease, hurried))
        self._notices.show(lease.job)
        try:
            await asyncio.wait({making, holding}, return_when=asyncio.FIRST_COMPLETED)
            made: Made | Unmade | None
            if making.done():
                made = making.result()
            else:
                making.cancel()
                await asyncio.gather(making, return_exceptions=True)
                made = _stopped_by(holding.result())
            outcome, ended = await self._conclude(lease, made, seen.waited)
            await self._tell(lease.job_id, ended)
            if made is None or (isinstance(made, Unmade) and made.end in (AttemptEnd.LOST, AttemptEnd.CANCELLED)):
                await self._call_off(lease, worker)
            return outcome
        finally:
            for task in (making, holding):
                task.cancel()
            await asyncio.gather(making, holding, return_exceptions=True)
            if self._hurried.get(lease.job_id) is hurried:
                del self._hurried[lease.job_id]
            self._notices.forget(lease.job_id, lease.attempt)

    async def take_up(self, driver: str) -> Sequence[Lease]:
        """What the process of that name drove when it last ended, to be driven again from here."""
        return await self._store.take_up(driver, self._ttl_ms)

    async def blame(self, lease: Lease, detail: str) -> None:
        """The attempt was lost because the worker's process died under it."""
        job = await self._store.blame(lease, detail)
        log.warning("worker_died_under_a_job", job=lease.job_id, attempt=lease.attempt, worker=lease.worker)
        if job is not None:
            self._notices.publish(job)
            await self._tell(job.id, job)

    async def _make(self, lease: Lease, worker: WorkerClient, seen: _Seen) -> Made | Unmade:
        """Everything up to the commit; each way to fail has its end, by name."""
        try:
            end, image = await self._follow(lease, worker, seen)
            return unmade_by(end) if isinstance(end, Failed) else await self._collect(lease, worker, end, image)
        except WorkerRefusedError as error:
            return Unmade(AttemptEnd.REFUSED, str(error))
        except (WorkerUnavailableError, WorkerUnauthorizedError) as error:
            return Unmade(AttemptEnd.RETURNED, str(error), error)
        except (WorkerUnreachableError, WorkerProtocolError) as error:
            waited = " (it had not begun: it was next, behind the one that ran)" if seen.waited else ""
            return Unmade(AttemptEnd.LOST, f"{error}{waited}", error)
        except ArtifactError as error:
            log.error("artifact_not_stored", job=lease.job_id, attempt=lease.attempt, error=str(error))  # noqa: TRY400
            return Unmade(AttemptEnd.LOST, str(error), unkept=True)
        except Exception as error:  # an attempt ends by name whatever happens, or its job would wait for the sweeper
            log.exception("attempt_failed_unexpectedly", job=lease.job_id, attempt=lease.attempt, worker=lease.worker)
            return Unmade(AttemptEnd.LOST, f"unexpected: {type(error).__name__}: {error}")

    async def _follow(
        self, lease: Lease, worker: WorkerClient, seen: _Seen
    ) -> tuple[Finished | Failed, FetchedImage | None]:
        """How it ended; and the image, if it came along."""
        rejoins = 0
        while True:
            seen.answered = False
            try:
                return await self._listen(lease, worker, seen)
            except WorkerUnreachableError as error:
                # A silent worker would be silent again, and one that never answered is simply not there.
                if isinstance(error, WorkerSilentError) or not seen.answered or rejoins == REJOINS:
                    raise
                rejoins += 1
                log.warning("generation_rejoined", job=lease.job_id, attempt=lease.attempt, error=str(error))
            except WorkerUnavailableError as error:
                if not rejoins:
                    raise
                # It held the generation a moment ago and knows it no more: it is another process now.
                raise WorkerUnreachableError(f"{error} (it has lost the generation that it held)") from error

    async def _listen(
        self, lease: Lease, worker: WorkerClient, seen: _Seen
    ) -> tuple[Finished | Failed, FetchedImage | None]:
        end, image = None, None
        async with aclosing(worker.generate(lease.generation_id, lease.request)) as told:
            async for news in told:
                match news:
                    case FetchedImage():
                        image = news
                    case Finished() | Failed():
                        seen.see(news)
                        end = news
                    case _:
                        seen.see(news)
                        self._report(lease, news)
        if end is None:
            raise WorkerUnreachableError(f"worker {worker.name}: told no end of {lease.generation_id}")
        return end, image

    async def _collect(
        self, lease: Lease, worker: WorkerClient, finished: Finished, came: FetchedImage | None
    ) -> Made | Unmade:
        fetched = came or await self._fetch(lease, worker)
        if fetched.sha256 != finished.sha256:
            announced = f"announced {finished.bytes}, {finished.sha256[:12]}"
            error = WorkerProtocolError(
                f"worker {worker.name}: the image of {lease.generation_id} is not the one that it announced "
                f"({len(fetched.data)} bytes, sha256 {fetched.sha256[:12]}; {announced})"
            )
            return Unmade(AttemptEnd.CORRUPT, str(error), error)
        image = await self._keep(lease, fetched, finished.media_type)
        if self._notices.watches(lease.job_id):
            self._recent.keep(image, fetched.data)
        return Made(replace(image, suspicion=finished.safety_reason), finished.timings)

    async def _fetch(self, lease: Lease, worker: WorkerClient) -> FetchedImage:
        """The worker keeps a finished image for a while: one broken connection is no reason to make it again."""
        rejoins = 0
        while True:
            try:
                return await worker.image(lease.generation_id)
            except WorkerUnreachableError as error:
                if isinstance(error, WorkerSilentError) or rejoins == REJOINS:
                    raise
                rejoins += 1
                log.warning("image_fetched_again", job=lease.job_id, attempt=lease.attempt, error=str(error))

    async def _keep(self, lease: Lease, fetched: FetchedImage, media_type: str) -> Image:
        """The image is here: what cannot be stored now is held, and tried again. Raises ArtifactError in the end."""
        why = "nothing was said of why"
        try:
            async with asyncio.timeout(self._keep_s):
                for pause_s in self._artifact_pauses_s:
                    try:
                        return await self._artifacts.put(lease.generation_id, fetched.data, media_type, fetched.sha256)
                    except ArtifactError as error:
                        why = str(error)
                        log.warning("artifact_not_stored_yet", job=lease.job_id, error=why, again_in_s=pause_s)
                        await asyncio.sleep(pause_s)
                return await self._artifacts.put(lease.generation_id, fetched.data, media_type, fetched.sha256)
        except TimeoutError as error:
            raise ArtifactError(f"the image could not be stored within {self._keep_s:g} s: {why}") from error

    async def _hold(self, lease: Lease, hurried: asyncio.Event) -> Renewal:
        """Renew until that is no use any more, and say why. A store that does not answer may answer in time."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ttl_ms / 3000):
                    await hurried.wait()
            hurried.clear()
            try:
                renewal = await self._store.renew(lease, self._ttl_ms)
            except StoreUnavailableError as error:
                log.warning("lease_not_renewed", job=lease.job_id, attempt=lease.attempt, error=str(error))
                continue
            if renewal is not Renewal.HELD:
                return renewal

    async def _call_off(self, lease: Lease, worker: WorkerClient) -> None:
        """Spare the worker what nobody waits for any more; it may not be there to hear it."""
        try:
            async with asyncio.timeout(CALL_OFF_S):
                await worker.cancel(lease.generation_id)
        except (WorkerError, TimeoutError) as error:
            log.info("generation_not_called_off", job=lease.job_id, attempt=lease.attempt, error=str(error))

    async def _conclude(self, lease: Lease, made: Made | Unmade | None, waited: bool) -> tuple[Outcome, Job | None]:
        """What the fleet learns, and the job as it is now if the attempt was ours to end."""
        match made:
            case Made(image, timings):
                job = await _insist(lambda: self._store.finish(lease, image, timings))
                outcome = Outcome(None if job is None else AttemptEnd.FINISHED)
            case Unmade(end, detail, error, unkept):
                job = await _insist(lambda: self._store.end_attempt(lease, end, detail))
                outcome = Outcome(None if job is None else end, error, waited, unkept)
            case None:
                job, outcome = None, Outcome(None, waited=waited)
            case _:
                assert_never(made)
        if job is not None:
            self._notices.publish(job)
        log.info(
            "attempt_ended",
            job=lease.job_id,
            attempt=lease.attempt,
            worker=lease.worker,
            end="not_ours" if outcome.end is None else outcome.end.value,
            detail=made.detail if isinstance(made, Unmade) else "",
        )
        return outcome, job

    async def _tell(self, job_id: str, known: Job | None = None) -> None:
        """Whoever watches learns the job's state; what lost attempts have stored goes when the job has ended."""
        try:
            job = known or await self._store.job(job_id)
            if job is None:
                return
            if known is None:  # or it is published
                self._notices.show(job)
            if job.state is JobState.QUEUED:
                self._queue.announce(job.pool)
            elif job.state.ended:
                await self._artifacts.keep_only(job_id, job.image)
        except (StoreUnavailableError, ArtifactError) as error:
            # Watchers and idle consumers look for themselves; a file too many harms nobody.
            log.warning("aftermath_left_undone", job=job_id, error=str(error))

    def _report(self, lease: Lease, event: Accepted | Started | Step) -> None:
        if not isinstance(event, Accepted):
            step = event.step if isinstance(event, Step) else 0
            self._notices.progress(lease.job_id, Progress(attempt=lease.attempt, step=step, steps=event.steps))


async def _insist(write: Callable[[], Awaitable[T]]) -> T:
    """Until the database answers. What is written is guarded by the lease, so being late does no harm."""
    while True:
        try:
            return await write()
        except StoreUnavailableError as error:
            log.error("end_not_written", error=str(error))  # noqa: TRY400 - its trace says nothing more
            await asyncio.sleep(STORE_PAUSE_S)
