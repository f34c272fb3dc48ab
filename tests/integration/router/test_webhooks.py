"""Jobs' owners are told: a real outbox, real HTTP, and the field's own libraries to verify with."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import openai
import pytest
import standardwebhooks

from router.contract import DeliveryState, JobRequest, JobState, JobWebhook, WebhookSecrets
from router.store import ApiKey
from router.store.sql import SqlStore
from router.webhooks import Delivery, Verdict
from router.webhooks.addresses import networks
from router.webhooks.deliverer import LEASE_MS, PER_HOST, Deliverer
from router.webhooks.post import Poster
from tests.emulators.paced_process import paced_worker
from tests.emulators.receiver import Receiver, receiver
from tests.integration.router.served import served_router, until
from tests.integration.router.test_store_webhooks import ended
from tests.stores import SteeredClock, opened_at

NOW = 1_800_000_000.0
ASKED = JobRequest(prompt="a press", width=256, height=256, seed=7)


@dataclass
class Post:
    """A store, and what it takes to deliver from it."""

    store: SqlStore
    key: ApiKey
    clock: SteeredClock
    verdicts: list[Verdict] = field(default_factory=list)

    @asynccontextmanager
    async def delivering(self, store: SqlStore | None = None) -> AsyncIterator[Deliverer]:
        async def compose(delivery: Delivery) -> bytes | None:
            return json.dumps({"id": delivery.id, "subject": delivery.subject}).encode()

        poster = Poster(networks("127.0.0.1"), timeout_s=5)
        outbox = (store or self.store).outbox
        deliverer = Deliverer(outbox, poster, compose, now=lambda: NOW, draw=lambda: 0.5, observe=self.verdicts.append)
        running = asyncio.create_task(deliverer.run())
        try:
            yield deliverer
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            poster.close()

    async def until_counted(self, state: DeliveryState, count: int) -> None:
        async def counted() -> bool:
            return (await self.store.outbox.counts())[state] == count

        await until(counted, f"{count} are {state}")


@pytest.fixture
async def post(database_url: str) -> AsyncIterator[Post]:
    clock = SteeredClock()
    async with opened_at(database_url, clock) as store:
        yield Post(store, await store.put_api_key("default", "0" * 64), clock)


@pytest.fixture
async def there() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        yield running


async def test_failures_are_tried_again_when_they_are_due_under_the_same_name(post: Post, there: Receiver) -> None:
    there.answers.extend([500, 429])
    there.retry_after = "1000"
    await ended(post.store, post.key, there.url())
    async with post.delivering() as deliverer:
        for tries, pause_ms in ((1, 1_000_000), (2, 1_000_000)):
            await there.has(tries)

            async def recorded(tries: int = tries) -> bool:
                return len(post.verdicts) == tries

            await until(recorded, "the failure is recorded")
            deliverer.wake()
            assert len(there.got) == tries, "not before it is due"
            post.clock.advance(pause_ms)
            deliverer.wake()
        await there.has(3)
        await post.until_counted(DeliveryState.DELIVERED, 1)
    assert len({sent.headers["webhook-id"] for sent in there.got}) == 1


async def test_410_is_asked_once_and_never_again(post: Post, there: Receiver) -> None:
    there.answers.append(410)
    for _ in range(3):
        await ended(post.store, post.key, there.url())
    async with post.delivering():
        await post.until_counted(DeliveryState.DEAD, 3)
        await ended(post.store, post.key, there.url())
        await post.until_counted(DeliveryState.DEAD, 4)
        await post.store.outbox.replay_dead()
        await post.until_counted(DeliveryState.DELIVERED, 4)


async def test_a_router_that_dies_in_the_middle_leaves_it_to_another(post: Post, there: Receiver) -> None:
    there.answers.append(0)
    await ended(post.store, post.key, there.url())
    async with post.delivering():
        await there.has(1)
    assert post.verdicts == []
    async with post.delivering() as other:
        other.wake()
        post.clock.advance(LEASE_MS + 1)
        other.wake()
        await there.has(2)
        await post.until_counted(DeliveryState.DELIVERED, 1)


async def test_several_routers_tell_each_once(post: Post, there: Receiver, database_url: str) -> None:
    for _ in range(20):
        await ended(post.store, post.key, there.url())
    async with opened_at(database_url, post.clock) as other, post.delivering(), post.delivering(other):
        await post.until_counted(DeliveryState.DELIVERED, 20)
    assert set(Counter(sent.headers["webhook-id"] for sent in there.got).values()) == {1}


async def test_a_receiver_that_is_slow_holds_its_own_places_and_nobody_elses(post: Post, there: Receiver) -> None:
    async with receiver() as slow:
        slow.answers.extend([0] * 50)
        for _ in range(50):
            await ended(post.store, post.key, slow.url())
        for _ in range(30):
            await ended(post.store, post.key, there.url())
        async with post.delivering():
            await there.has(30)
            await post.until_counted(DeliveryState.DELIVERED, 30)
            assert 1 <= len(slow.got) <= PER_HOST


async def test_what_a_job_came_to_is_told_by_a_real_router_and_verified_by_the_fields_libraries(
    there: Receiver,
) -> None:
    async with paced_worker() as worker, served_router(WEBHOOK_ALLOW="127.0.0.1") as router:
        await router.use("w-1", worker)
        hook = there.url("/images?from=letterpress")
        async with router.client() as client, router.http() as http:
            asked = ASKED.model_copy(update={"webhook": hook})
            job = await client.wait((await client.submit(asked)).id)
            assert job.webhook == hook
            (sent,) = await there.has(1)
            (secret,) = WebhookSecrets.model_validate_json((await http.get("/v1/webhooks/secrets")).content).secrets
            standardwebhooks.Webhook(secret).verify(sent.body, sent.headers)
            openai.OpenAI(api_key="x").webhooks.verify_signature(sent.body, sent.headers, secret=secret)
            told = JobWebhook.model_validate_json(sent.body)
            assert (told.id, told.type, told.data.id) == (sent.headers["webhook-id"], "job.succeeded", job.id)
            assert told.data.state is JobState.SUCCEEDED
            assert told.data.image
            image = await http.get(told.data.image.url, headers={"Authorization": ""})
            assert len(image.content) == told.data.image.bytes
            assert b"a press" not in sent.body
            rotated = WebhookSecrets.model_validate_json((await http.post("/v1/webhooks/secrets")).content).secrets
            assert len(rotated) == 2
            async with router.admin() as admin:
                (one,) = await admin.webhooks()
                assert (one.state, one.status, one.subject) == (DeliveryState.DELIVERED, 204, job.id)
                assert (await admin.replay(one.id)).state is DeliveryState.PENDING
                again = (await there.has(2))[1]
                for each in rotated:
                    standardwebhooks.Webhook(each).verify(again.body, again.headers)
                assert await admin.replay_dead() == 0
        assert secret not in router.log
        assert hook not in router.log, "a URL may hold its owner's token"


async def test_a_restarted_router_tells_what_the_one_before_could_not(there: Receiver) -> None:
    async with (
        paced_worker() as worker,
        served_router(WEBHOOK_ALLOW="127.0.0.1") as router,
        router.admin() as admin,
        router.client() as client,
    ):
        await router.use("w-1", worker)
        there.answers.append(0)
        await client.submit(ASKED.model_copy(update={"webhook": there.url()}))
        await there.has(1)
        await router.stop()
        await router.start()
        (one,) = await admin.webhooks(DeliveryState.PENDING)
        assert (one.tries, one.status) == (1, None)
        await admin.replay(one.id)
        await there.has(2)


async def test_a_url_that_could_never_work_is_refused_with_the_job() -> None:
    async with served_router() as router, router.http() as http:
        for url, said in {
            "http://example.com/hook": "webhook: must be https",
            "https://user:secret@example.com/": "must hold no name and no password",
            "https://example.com/#x": "must hold no #fragment",
            "ftp://example.com/": "must be a URL such as https://example.com/hook",
            f"https://example.com/{'x' * 2048}": "at most 2048 characters",
        }.items():
            answer = await http.post("/v1/jobs", json={"prompt": "a", "webhook": url})
            assert answer.status_code == 422
            assert said in answer.json()["detail"]
            assert "secret" not in answer.text


async def test_a_receiver_can_read_what_it_will_be_sent_in_the_routers_own_description() -> None:
    async with served_router() as router, router.http("") as http:
        described = (await http.get("/openapi.json")).json()
    body = described["webhooks"]["job.ended"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("/JobWebhook")
