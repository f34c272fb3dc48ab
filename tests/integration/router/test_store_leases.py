"""The lease rules as a state machine: any order of leases, renewals, finishes, ends, cancellations and sweeps,
late ones included, on real databases with a steered clock, against a model of a few lines.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from router.choice import Terms
from router.contract import JobState
from router.jobs import CRASHES, FAULTS, MAX_CRASHES, PATIENCE_MS, TELLING, AttemptEnd, Lease
from router.store import ROUTER, Renewal
from tests.conftest import NewDatabase
from tests.integration.router.store_machine import StoreMachine
from tests.stores import IMAGE, NO_TIME, request

TTL_MS = 1000
WORKERS = ("a", "b", "c")
POOL = "interactive"
CONVICTING = CRASHES | {AttemptEnd.LOST}
UNMADE = [end for end in AttemptEnd if end is not AttemptEnd.FINISHED]
later = st.sampled_from([0, 0, 0, 1, TTL_MS // 2, TTL_MS - 1, TTL_MS, TTL_MS + 1])
"""Milliseconds that pass before something is done: mostly none, otherwise around the end of a lease."""


@dataclass
class Expected:
    """What a job should look like."""

    created: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    worker: str | None = None
    expires: int = 0
    cancel: bool = False
    finishes: int = 0
    crashed_on: list[str] = field(default_factory=list)
    priority: int = 0
    deadline: int | None = None

    @property
    def place(self) -> tuple[int, int]:
        """In the queue of its key; a job without a deadline is due a day after it came."""
        return -self.priority, self.created + PATIENCE_MS if self.deadline is None else self.deadline

    @property
    def suspect(self) -> bool:
        return len(set(self.crashed_on)) >= 2 or len(self.crashed_on) >= MAX_CRASHES


@dataclass
class Ended:
    job: str
    end: AttemptEnd
    forgotten: bool = False
    """Its worker was released from quarantine since."""


class Leases(StoreMachine):
    jobs: Bundle[str] = Bundle("jobs")
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self.expected: dict[str, Expected] = {}
        self.quarantined: set[str] = set()
        self.ends: dict[str, dict[str, Ended]] = {worker: {} for worker in WORKERS}

    @initialize(target=jobs)
    def open(self) -> MultipleResults[str]:
        self.open_store()
        for name in WORKERS:
            self.run(self.store.put_worker(name, "http://127.0.0.1:1", "t" * 16, POOL))
        return multiple(self.submit_one(), self.submit_one())

    def submit_one(self, priority: int = 0, within_ms: int | None = None) -> str:
        self.clock.advance(1)
        deadline = None if within_ms is None else self.clock.ms + within_ms
        job = self.run(self.store.add_job(self.key.id, POOL, request(), Terms(priority, deadline)))
        self.expected[job.id] = Expected(created=job.created_at, priority=priority, deadline=deadline)
        return job.id

    def held(self, lease: Lease) -> bool:
        """Until somebody takes it: that it has expired changes nothing by itself."""
        job = self.expected[lease.job_id]
        return job.state is JobState.RUNNING and (job.attempt, job.worker) == (lease.attempt, lease.worker)

    def requeue(self, job: Expected) -> None:
        job.state = JobState.CANCELLED if job.cancel else JobState.QUEUED
        job.worker = None

    @precondition(lambda self: len(self.expected) < 5)
    @rule(
        target=jobs,
        priority=st.sampled_from([0, 0, 0, -1, 5]),
        within_ms=st.sampled_from([None, None, None, 1, TTL_MS, 3 * TTL_MS]),
    )
    def submit(self, priority: int, within_ms: int | None) -> str:
        return self.submit_one(priority, within_ms)

    def overdue(self, job: Expected) -> bool:
        return job.state is JobState.QUEUED and job.deadline is not None and job.deadline <= self.clock.ms

    @rule(ms=later)
    def expire(self, ms: int) -> None:
        """What waits at its deadline ends; what runs by then does not."""
        self.clock.advance(ms)
        overdue = {name for name, job in self.expected.items() if self.overdue(job)}
        assert {job.id for job in self.run(self.store.expire(100))} == overdue
        for name in overdue:
            self.expected[name].state = JobState.EXPIRED

    @rule(target=leases, worker=st.sampled_from(WORKERS))
    def lease(self, worker: str) -> Lease | MultipleResults[Lease]:
        return self.lease_one(worker) or multiple()

    def lease_one(self, worker: str) -> Lease | None:
        lease = self.run(self.store.lease_next(worker, TTL_MS))
        waiting = [
            (job.place, name)
            for name, job in self.expected.items()
            if job.state is JobState.QUEUED and not self.overdue(job)
        ]
        if not waiting or worker in self.quarantined:
            assert lease is None
            return None
        assert lease is not None
        assert lease.job_id == min(waiting)[1], "not the first"
        job = self.expected[lease.job_id]
        assert lease.attempt == job.attempt + 1, "attempts count up"
        assert lease.expires_at == self.clock.ms + TTL_MS
        job.state, job.attempt, job.worker, job.expires = JobState.RUNNING, lease.attempt, worker, lease.expires_at
        return lease

    @rule(lease=leases, ms=later)
    def renew(self, lease: Lease, ms: int) -> None:
        self.clock.advance(ms)
        held, job = self.held(lease), self.expected[lease.job_id]
        said = self.run(self.store.renew(lease, TTL_MS))
        if held:
            job.expires = self.clock.ms + TTL_MS
            assert said is (Renewal.CANCEL if job.cancel else Renewal.HELD)
        else:
            assert said is Renewal.LOST

    @rule(lease=leases, ms=later)
    def finish(self, lease: Lease, ms: int) -> None:
        self.clock.advance(ms)
        held, job = self.held(lease), self.expected[lease.job_id]
        image = replace(IMAGE, path=lease.generation_id)
        finished = self.run(self.store.finish(lease, image, NO_TIME))
        assert (finished is not None) is held
        if finished is not None:
            self.note(lease, AttemptEnd.FINISHED)
            job.state, job.finishes = JobState.SUCCEEDED, job.finishes + 1
            assert finished.image == image
            assert self.run(self.store.job(lease.job_id)) == finished

    @rule(lease=leases, forged=st.sampled_from(WORKERS))
    def finish_anothers(self, lease: Lease, forged: str) -> None:
        """Neither another worker nor another attempt may use a lease."""
        if forged != lease.worker:
            assert not self.run(self.store.finish(replace(lease, worker=forged), IMAGE, NO_TIME))
        assert not self.run(
            self.store.finish(replace(lease, job=replace(lease.job, attempt=lease.attempt + 1000)), IMAGE, NO_TIME)
        )

    @rule(worker=st.sampled_from(WORKERS))
    def crash(self, worker: str) -> None:
        """The next job crashes `worker`: often enough that one becomes the suspect."""
        lease = self.lease_one(worker)
        if lease is not None:
            self.end_one(lease, AttemptEnd.CRASHED)

    @rule(lease=leases, end=st.sampled_from(UNMADE), ms=later)
    def end_attempt(self, lease: Lease, end: AttemptEnd, ms: int) -> None:
        self.clock.advance(ms)
        self.end_one(lease, end)

    def end_one(self, lease: Lease, end: AttemptEnd) -> None:
        held, job = self.held(lease), self.expected[lease.job_id]
        ended = self.run(self.store.end_attempt(lease, end, "why"))
        assert (ended is not None) is held
        if not held:
            return
        if end in CRASHES:
            job.crashed_on.append(lease.worker)
        self.note(lease, end)
        if end is AttemptEnd.CANCELLED:
            job.state = JobState.CANCELLED
        elif end is AttemptEnd.REFUSED or (end in CONVICTING and job.suspect):
            job.state = JobState.FAILED
        else:
            self.requeue(job)

    def note(self, lease: Lease, end: AttemptEnd) -> None:
        """The attempt has ended so; no two end in the same millisecond, so that their order is known."""
        self.ends[lease.worker][lease.generation_id] = Ended(lease.job_id, end)
        self.clock.advance(1)
        self.judge(lease.worker, end)

    def judge(self, worker: str, end: AttemptEnd) -> None:
        """A damaged image, or two different jobs in a row that failed, put a worker in quarantine."""
        told = [ended for ended in self.ends[worker].values() if ended.end in TELLING and not ended.forgotten][-2:]
        if end in FAULTS and told:
            in_a_row = len({ended.job for ended in told}) == 2 and all(ended.end in FAULTS for ended in told)
            if told[-1].end is AttemptEnd.CORRUPT or in_a_row:
                self.quarantined.add(worker)

    @rule(lease=leases)
    def blame(self, lease: Lease) -> None:
        """What was lost turns out to have been a death: it counts as a crash, and once."""
        ended, job = self.ends[lease.worker].get(lease.generation_id), self.expected[lease.job_id]
        failed = self.run(self.store.blame(lease, "it died"))
        if ended is None or ended.end not in (AttemptEnd.LOST, AttemptEnd.EXPIRED):
            assert failed is None
            return
        ended.end = AttemptEnd.DIED
        job.crashed_on.append(lease.worker)
        self.judge(lease.worker, AttemptEnd.DIED)
        assert (failed is not None) is (job.state is JobState.QUEUED and job.suspect)
        if failed is not None:
            job.state = JobState.FAILED

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: str) -> None:
        """The next job kills `worker`."""
        lease = self.lease_one(worker)
        if lease is not None:
            self.end_one(lease, AttemptEnd.LOST)
            self.blame(lease)

    @rule(worker=st.sampled_from(WORKERS))
    def release(self, worker: str) -> None:
        assert self.run(self.store.release_worker(worker)) is not None
        self.quarantined.discard(worker)
        for ended in self.ends[worker].values():
            ended.forgotten = True
        self.clock.advance(1)

    @rule(lease=leases)
    def lose_what_was_cancelled(self, lease: Lease) -> None:
        self.cancel_one(lease.job_id)
        self.end_one(lease, AttemptEnd.LOST)

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        self.cancel_one(job)

    def cancel_one(self, job: str) -> None:
        cancelled = self.run(self.store.cancel_job(job))
        known = self.expected[job]
        assert (cancelled is not None) is (known.state is JobState.QUEUED)
        if known.state is JobState.QUEUED:
            known.state = JobState.CANCELLED
        known.cancel = known.cancel or known.state is JobState.RUNNING

    @rule(ms=later)
    def sweep(self, ms: int) -> None:
        self.clock.advance(ms)
        swept = {job.id for job in self.run(self.store.sweep())}
        due = {
            name
            for name, job in self.expected.items()
            if job.state is JobState.RUNNING and job.expires <= self.clock.ms
        }
        assert swept == due
        for name in due:
            job = self.expected[name]
            assert job.worker is not None
            self.ends[job.worker][f"{name}.{job.attempt}"] = Ended(name, AttemptEnd.EXPIRED)
            self.requeue(job)
        self.clock.advance(1)

    @invariant()
    def every_job_is_as_expected(self) -> None:
        for name, known in self.expected.items():
            job = self.run(self.store.job(name))
            assert job is not None
            assert (job.state, job.attempt, job.created_at) == (known.state, known.attempt, known.created)
            assert job.state.ended == (job.finished_at is not None)
            assert (job.error is not None) == (job.state in (JobState.FAILED, JobState.EXPIRED))
            assert (job.image is not None) == (job.state is JobState.SUCCEEDED) == (known.finishes == 1)
            assert known.finishes <= 1, "committed twice"

    @rule(ms=later)
    def start_again(self, ms: int) -> None:
        """Who drove comes back, and takes up what nobody has taken."""
        self.clock.advance(ms)
        assert self.run(self.store.take_up("another", TTL_MS)) == []
        taken_up = {
            (lease.job_id, lease.attempt, lease.worker): lease.expires_at
            for lease in self.run(self.store.take_up(ROUTER, TTL_MS))
        }
        running = {name: job for name, job in self.expected.items() if job.state is JobState.RUNNING}
        for job in running.values():
            job.expires = self.clock.ms + TTL_MS
        assert taken_up == {(name, job.attempt, job.worker): job.expires for name, job in running.items()}

    @invariant()
    def counts_agree(self) -> None:
        states = Counter(job.state for job in self.expected.values())
        assert self.run(self.store.counts()) == ({POOL: dict(states)} if states else {})


def test_no_order_of_events_breaks_the_lease_rules(new_database: NewDatabase) -> None:
    class OnNewDatabase(Leases):
        def __init__(self) -> None:
            super().__init__(new_database())

    run_state_machine_as_test(
        OnNewDatabase,
        settings=settings(
            max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
