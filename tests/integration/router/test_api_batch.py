"""Many native jobs in one request: all or none, said by line what is wrong, and once under an Idempotency-Key."""

from __future__ import annotations

import json

import pytest

from router.client import RouterRefusedError
from router.contract import JobRequest
from tests.integration.router.served import ServedRouter

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEADERS = {"Content-Type": "application/x-ndjson"}
SMALL = JobRequest(prompt="a red fox", width=256, height=256, steps=1, pool="interactive")


def lines(*bodies: dict[str, object]) -> bytes:
    return b"\n".join(json.dumps(body).encode() for body in bodies)


async def test_a_batch_becomes_jobs_in_the_order_of_its_lines(router: ServedRouter) -> None:
    async with router.client() as client:
        ids = await client.submit_batch(SMALL.model_copy(update={"seed": seed}) for seed in range(450))
        assert len(set(ids)) == 450
        first, last = await client.job(ids[0]), await client.job(ids[449])
        assert (first.seed, last.seed) == (0, 449)
        again = await client.submit_batch([SMALL], "batch-1")
        assert await client.submit_batch([SMALL], "batch-1") == again
        with pytest.raises(RouterRefusedError, match="422"):
            await client.submit_batch([SMALL, SMALL], "batch-1")


async def test_one_bad_line_leaves_nothing_and_is_named(router: ServedRouter) -> None:
    good = {"prompt": "a", "pool": "interactive", "width": 256, "height": 256}
    async with router.http() as http, router.admin() as admin:
        before = (await admin.pools())[0]
        body = lines(good, {**good, "width": 100}, {**good, "pool": "other"}) + b"\n{"
        answer = await http.post("/v1/jobs/batch", content=body, headers=HEADERS)
        after = (await admin.pools())[0]
    assert answer.status_code == 422
    named = [error.partition(":")[0] for error in answer.json()["errors"]]
    assert named == ["line 2, width", "line 3, pool", "line 4"]
    assert sum(after.model_dump(exclude={"name", "workers", "ready"}).values()) == sum(
        before.model_dump(exclude={"name", "workers", "ready"}).values()
    )


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        (HEADERS, b"\n\n", 422),
        (HEADERS, b"x" * (2**20 + 1), 413),
    ],
)
async def test_what_is_no_batch_is_refused(
    router: ServedRouter, headers: dict[str, str], body: bytes, status: int
) -> None:
    async with router.http() as http:
        answer = await http.post("/v1/jobs/batch", content=body, headers=headers)
    assert answer.status_code == status
