"""`Store` on SQLAlchemy: one method, one transaction; what each does is in the `*_rows` modules beside this one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from router import ids
from router.choice import ANY_TERMS, Capability, Lane, Spill, Terms
from router.contract import JobState, WorkerView
from router.errors import AdmissionError, KeyExistsError
from router.jobs import AttemptEnd, Image, Job, JobError, Lease, NewJob
from router.limits import KeyLimits, Share
from router.pace import Service
from router.store import (
    ROUTER,
    Admitted,
    ApiKey,
    JobFilter,
    KeyRecord,
    RegisteredWorker,
    Renewal,
    Repeatable,
    Tally,
    UsedInADay,
    admission_rows,
    batch_rows,
    belief_rows,
    choice_rows,
    fact_rows,
    front_rows,
    job_rows,
    key_rows,
    lease_rows,
    retention_rows,
    sum_rows,
    tally_rows,
    worker_rows,
)
from router.store.batches import SqlBatches
from router.store.clock import Clock, database_clock
from router.store.database import Database
from router.store.outbox import SqlOutbox
from worker.contract import GenerationRequest, Timings

Entropy = Callable[[int], bytes]
"""So many random bytes."""


class SqlStore:
    """The store. Every method may raise StoreUnavailableError; then nothing was promised."""

    def __init__(self, database: Database, clock: Clock, entropy: Entropy) -> None:
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self.outbox = SqlOutbox(database, clock, entropy)
        self.batches = SqlBatches(database, clock, entropy)
        self.fronts = front_rows.SqlFronts(database, clock)

    @classmethod
    async def open(cls, url: str, clock: Clock = database_clock, entropy: Entropy = secrets.token_bytes) -> Self:
        """Open `sqlite+aiosqlite:///path` (or a Postgres URL) and migrate it."""
        return cls(await Database.open(url), clock, entropy)

    @property
    def in_order(self) -> bool:
        return self._database.in_order

    async def add_job(
        self,
        api_key_id: str,
        pool: str,
        request: GenerationRequest,
        terms: Terms = ANY_TERMS,
        webhook: str | None = None,
    ) -> Job:
        (job,) = await self.add_jobs(api_key_id, pool, [NewJob(request, terms, webhook)])
        return job

    async def add_jobs(self, api_key_id: str, pool: str, wanted: Sequence[NewJob]) -> Sequence[Job]:
        entropies = [self._entropy(ids.ENTROPY_BYTES) for _ in wanted]
        added = await self._database.write(job_rows.add, self._clock(), entropies, api_key_id, pool, wanted)
        return await self.jobs(added)

    async def admit(
        self,
        key: ApiKey,
        pool: str,
        wanted: Sequence[NewJob],
        pool_bound: int,
        repeatable: Repeatable | None = None,
        refusal: AdmissionError | None = None,
        front: str | None = None,
    ) -> Admitted:
        entropies = [self._entropy(ids.ENTROPY_BYTES) for _ in wanted]
        write = self._database.write_unsynced if front is not None else self._database.write
        return await write(
            admission_rows.admit,
            self._clock(),
            entropies,
            key,
            pool,
            wanted,
            pool_bound,
            repeatable=repeatable,
            refusal=refusal,
            front=front,
        )

    async def expect_pool(self, pool: str, for_ms: int) -> None:
        await self._database.write(admission_rows.expect, self._clock(), pool, for_ms)

    async def pool_expected(self, pool: str) -> bool:
        return await self._database.read(admission_rows.expected, self._clock(), pool)

    async def leave(self, key: ApiKey, name: str, front: str, *, cancel: bool) -> Sequence[Job]:
        return await self._database.write(front_rows.leave, self._clock(), key.id, name, front, cancel=cancel)

    async def jobs(self, job_ids: Sequence[str]) -> Sequence[Job]:
        return await self._database.read(job_rows.find_all, job_ids)

    async def listed(self, api_key_id: str, wanted: JobFilter, before: str | None, limit: int) -> Sequence[Job]:
        return await self._database.read(job_rows.listed, api_key_id, wanted, before, limit)

    async def shares(self, pool: str) -> Mapping[str, Share]:
        return await self._database.read(admission_rows.shares, pool)

    async def running(self, pool: str) -> Share:
        return await self._database.read(admission_rows.running, pool)

    async def job(self, job_id: str) -> Job | None:
        return await self._database.read(job_rows.find, job_id)

    async def cancel_job(self, job_id: str) -> Job | None:
        return await self._database.write(job_rows.cancel, self._clock(), job_id)

    async def standings(self, job_ids: Sequence[str]) -> Mapping[str, tuple[JobState, int]]:
        return await self._database.read(job_rows.standings, job_ids)

    async def lease_next(
        self,
        worker: str,
        ttl_ms: int,
        places: int | None = None,
        spills: Sequence[Spill] = (),
        driver: str = ROUTER,
    ) -> Lease | None:
        while True:  # each time round, somebody else has leased a job
            found = await self._database.write_unsynced(
                choice_rows.lease_next, self._clock(), worker, ttl_ms, places, spills, driver
            )
            if not isinstance(found, choice_rows.Overtaken):
                return found

    async def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        return await self._database.write_unsynced(lease_rows.renew, self._clock(), lease, ttl_ms)

    async def finish(self, lease: Lease, image: Image, timings: Timings) -> Job | None:
        return await self._database.write(lease_rows.finish, self._clock(), lease, image, timings)

    async def end_attempt(self, lease: Lease, end: AttemptEnd, detail: str) -> Job | None:
        return await self._database.write(lease_rows.end_attempt, self._clock(), lease, end, detail)

    async def blame(self, lease: Lease, detail: str) -> Job | None:
        return await self._database.write(lease_rows.blame, self._clock(), lease, detail)

    async def sweep(self) -> Sequence[Job]:
        return await self._database.write(lease_rows.sweep, self._clock())

    async def shorten_leases(self, ttl_ms: int) -> int:
        return await self._database.write(lease_rows.shorten, self._clock(), ttl_ms)

    async def expire(self, limit: int) -> Sequence[Job]:
        return await self._database.write(job_rows.expire, self._clock(), limit)

    async def lanes(self, pool: str) -> Sequence[Lane]:
        return await self._database.read(choice_rows.waiting_lanes, pool)

    async def give_up(self, pool: str, lane: Lane, over: int, error: JobError, limit: int) -> Sequence[Job]:
        return await self._database.write(job_rows.give_up, self._clock(), pool, lane, over, error, limit)

    async def take_up(self, driver: str, ttl_ms: int) -> Sequence[Lease]:
        return await self._database.write(lease_rows.take_up, self._clock(), driver, ttl_ms)

    async def counts(self) -> Mapping[str, Mapping[JobState, int]]:
        return await self._database.read(tally_rows.counts)

    async def attempt_counts(self) -> Mapping[str, Mapping[AttemptEnd, int]]:
        return await self._database.read(tally_rows.attempt_counts)

    async def oldest_waiting_ms(self) -> Mapping[str, int]:
        return await self._database.read(tally_rows.oldest_waiting_ms, self._clock())

    async def tallies(self) -> Sequence[Tally]:
        return await self._database.read(sum_rows.every)

    async def queued(self, pool: str) -> int:
        return await self._database.read(tally_rows.queued, pool)

    async def recent_services(self, pool: str, limit: int) -> Sequence[Service]:
        return await self._database.read(tally_rows.recent_services, pool, limit)

    async def put_worker(self, name: str, url: str, token: str, pool: str) -> RegisteredWorker:
        try:
            return await self._database.write(worker_rows.put, name, url, token, pool)
        except IntegrityError:  # another router was told of it at the same time
            return await self._database.write(worker_rows.put, name, url, token, pool)

    async def workers(self) -> Sequence[RegisteredWorker]:
        return await self._database.read(worker_rows.every)

    async def describe_worker(self, name: str, capability: Capability) -> None:
        await self._database.write(worker_rows.describe, name, capability)

    async def report(self, driver: str, views: Sequence[WorkerView], keep_ms: int) -> None:
        await self._database.write(belief_rows.report, self._clock(), driver, views, keep_ms)

    async def reports(self, within_ms: int) -> Sequence[WorkerView]:
        return await self._database.read(belief_rows.every, self._clock(), within_ms)

    async def drain_worker(self, name: str) -> RegisteredWorker | None:
        return await self._database.write(worker_rows.drain, name)

    async def worker(self, name: str) -> RegisteredWorker | None:
        return await self._database.read(worker_rows.find, name)

    async def release_worker(self, name: str) -> RegisteredWorker | None:
        return await self._database.write(worker_rows.release, self._clock(), name)

    async def remove_worker(self, name: str) -> None:
        await self._database.write(worker_rows.remove, name)

    async def put_api_key(self, name: str, key_sha256: str) -> ApiKey:
        entropy = self._entropy(ids.ENTROPY_BYTES)
        try:
            return await self._database.write(key_rows.put, self._clock(), entropy, name, key_sha256)
        except IntegrityError:  # another router has made it at the same time
            return await self._database.write(key_rows.put, self._clock(), entropy, name, key_sha256)

    async def create_api_key(self, name: str, key_sha256: str, limits: KeyLimits) -> KeyRecord:
        entropy = self._entropy(ids.ENTROPY_BYTES)
        try:
            return await self._database.write(key_rows.create, self._clock(), entropy, name, key_sha256, limits)
        except IntegrityError as error:  # another router was quicker
            raise KeyExistsError(name) from error

    async def api_keys(self) -> Sequence[KeyRecord]:
        return await self._database.read(key_rows.every)

    async def revoke_api_key(self, name: str) -> KeyRecord | None:
        return await self._database.write(batch_rows.revoke_key, self._clock(), name)

    async def limit_api_key(self, name: str, limits: KeyLimits) -> KeyRecord | None:
        return await self._database.write(key_rows.limit, name, limits)

    async def used(self, name: str, since: str) -> Sequence[UsedInADay] | None:
        return await self._database.read(key_rows.used, name, since)

    async def api_key(self, key_sha256: str) -> ApiKey | None:
        return await self._database.read(key_rows.find, key_sha256)

    async def fact(self, name: str, proposed: str | None = None) -> str | None:
        if proposed is None:
            return await self._database.read(fact_rows.find, name)
        try:
            return await self._database.write(fact_rows.propose, name, proposed)
        except IntegrityError:  # another router was quicker
            return await self._database.read(fact_rows.find, name)

    async def forget_jobs(self, older_ms: int, limit: int) -> int:
        return await self._database.write(retention_rows.forget_jobs, self._clock(), older_ms, limit)

    async def forget_repetitions(self, older_ms: int) -> None:
        await self._database.write(retention_rows.forget_repetitions, self._clock(), older_ms)

    async def named_images(self, paths: Sequence[str]) -> frozenset[str]:
        return await self._database.read(retention_rows.named_images, paths)

    async def ping(self) -> None:
        await self._database.read(_ping)

    async def check_writes(self) -> None:
        await self._database.write(fact_rows.try_one, f"try-{self._entropy(ids.ENTROPY_BYTES).hex()}")

    async def close(self) -> None:
        await self._database.close()


def _ping(connection: Connection) -> None:
    connection.execute(select(1))
