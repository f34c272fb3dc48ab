"""The load under which everything dies, and what is held against the promise when it is over: every job that was taken
on ends exactly once, and every image can be read and is the one that its job describes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic

import httpx

from router.client import RouterClientError
from router.contract import BATCH, INTERACTIVE, JobRequest, JobState, JobView
from tests.emulators.plain_png import png
from tests.reliability.chaos import STEPS, Chaos, body
from worker.contract import GenerationRequest

SETTLE_S = 240.0
"""In which all that was taken on must end once the faults are over; a job may have lost several leases by then."""
UNENDED = "SELECT id FROM jobs WHERE state IN ('queued', 'running')"
BATCH_SEEDS = 1_000_000
"""The batch pool's jobs have seeds from here on."""


@dataclass
class Account:
    """What a run was. `taken` are the jobs that the router has promised to finish, by id, with their seeds."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    taken: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    """Synchronous requests that got their image."""
    refused: int = 0
    """Requests of either kind that were told to come back, or whose connection broke before an answer."""
    attempts: int = 0
    ends: str = ""
    """How many attempts ended how."""
    seconds: float = 0.0

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        batch = sum(seed >= BATCH_SEEDS for seed in self.taken.values())
        return (
            f"seed {self.seed}: {len(self.taken)} jobs ({batch} of the batch pool) and {self.answered} requests "
            f"finished, 0 lost, 0 twice; {self.attempts} attempts ({self.ends}), {self.refused} told to come back; "
            f"{sum(self.faults.values())} faults ({faults}) in {self.seconds:.0f} s"
        )


async def run(made: Chaos, seed: int, wanted: list[str], at_once: int) -> Account:
    """Let `wanted` happen, up to `at_once` at a time, under load; AssertionError unless all promises were kept."""
    account, over, begun = Account(seed), asyncio.Event(), monotonic()
    clients = [
        asyncio.create_task(_submit(made, account, over, INTERACTIVE, 1)),
        asyncio.create_task(_submit(made, account, over, BATCH, BATCH_SEEDS)),
        asyncio.create_task(_ask(made, account, over)),
    ]
    try:
        pending, left = set[asyncio.Task[None]](), list(wanted)
        busy: dict[asyncio.Task[None], str] = {}
        while left or pending:
            while left and len(pending) < at_once:
                name = next((one for one in left if one not in busy.values()), None)
                if name is None:
                    break
                left.remove(name)
                account.faults[name] += 1
                task = asyncio.create_task(made.faults[name]())
                busy[task] = name
                pending.add(task)
                await made.moment()
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del busy[task]
                task.result()
    finally:
        over.set()
        await asyncio.gather(*clients)
    await made.house.edge_answers()
    await _settle(made, account)
    account.seconds = monotonic() - begun
    return account


async def _submit(made: Chaos, account: Account, over: asyncio.Event, pool: str, seed: int) -> None:
    async with made.house.client() as client:
        while not over.is_set():
            request = JobRequest(prompt="a red fox", width=256, height=256, steps=STEPS, seed=seed, pool=pool)
            try:
                account.taken[(await client.submit(request)).id] = seed
            except RouterClientError:
                account.refused += 1
            seed += 1
            await asyncio.sleep(made.draw.uniform(0.1, 0.4) * (1 if pool == INTERACTIVE else 2))


async def _ask(made: Chaos, account: Account, over: asyncio.Event) -> None:
    while not over.is_set():
        try:
            async with made.house.http() as http:
                answer = await http.post("/generate", json=body("a blue fox"), timeout=60)
            assert answer.status_code in (200, 503), answer.text
            account.answered += answer.status_code == 200
            account.refused += answer.status_code != 200
        except httpx.HTTPError:
            account.refused += 1
        await asyncio.sleep(0.2)


async def _settle(made: Chaos, account: Account) -> None:
    """Every job that was taken on ends, by itself, and is what it should be."""
    try:
        async with asyncio.timeout(SETTLE_S), made.house.client() as client:
            for job_id, seed in account.taken.items():
                view = await client.wait(job_id)
                assert view.state is JobState.SUCCEEDED, f"{job_id}: {view.state}: {view.error}"
                await _verify(client.image, view, seed)
            while await made.sql(UNENDED):  # noqa: ASYNC110
                await asyncio.sleep(0.2)  # those of clients that are gone
    except TimeoutError:
        raise AssertionError(await _stuck(made)) from None
    twice = await made.sql("SELECT job_id FROM attempts WHERE \"end\" = 'finished' GROUP BY job_id HAVING count(*) > 1")
    assert not twice, f"finished twice: {twice}"
    astray = await made.sql(
        "SELECT id FROM jobs WHERE (state = 'succeeded') <> EXISTS (SELECT 1 FROM attempts WHERE job_id = id "
        "AND \"end\" = 'finished')"
    )
    assert not astray, f"succeeded without a finished attempt, or the other way round: {astray}"
    account.attempts = int(await made.sql("SELECT count(*) FROM attempts"))
    ends = await made.sql('SELECT count(*), "end" FROM attempts GROUP BY "end" ORDER BY 1 DESC')
    account.ends = ", ".join(line.replace("|", " ") for line in ends.splitlines())


async def _stuck(made: Chaos) -> str:
    """What has not ended, how often it was tried, and who was there to do it."""
    left = await made.sql(f"SELECT * FROM jobs WHERE id IN ({UNENDED})")  # noqa: S608 - no word of anybody's
    tried = await made.sql(f"SELECT * FROM attempts WHERE job_id IN ({UNENDED}) ORDER BY job_id, attempt")  # noqa: S608
    there = await made.sql("SELECT * FROM workers")
    logs = "\n".join(made.logs())
    return f"after {SETTLE_S:g} s not ended:\n{left}\nattempts:\n{tried}\nworkers:\n{there}\n{logs}"


async def _verify(image: Callable[[str], Awaitable[bytes]], view: JobView, seed: int) -> None:
    assert view.image is not None
    data = await image(view.id)
    assert hashlib.sha256(data).hexdigest() == view.image.sha256
    asked = GenerationRequest(prompt=view.prompt, width=256, height=256, steps=STEPS, seed=seed)
    assert data == png(asked), f"{view.id}: another job's image"
