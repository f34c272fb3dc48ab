"""The admin app: who may change what, what the operator sees, and its client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from router.client import AdminClient, RouterAwayError, RouterNotFoundError, RouterUnauthorizedError
from router.contract import WorkerHealth, WorkerRegistration, fingerprint
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.served import ADMIN_KEY, ServedRouter, until
from tests.ports import free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = "sixteen-characters-or-more"


@pytest_asyncio.fixture(loop_scope="module")
async def admin(router: ServedRouter) -> AsyncIterator[AdminClient]:
    async with router.admin() as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def http(router: ServedRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=router.admin_url, trust_env=False) as client:
        yield client


def _nowhere(token: str = TOKEN, pool: str = "batch") -> WorkerRegistration:
    """A worker at a port where nobody listens."""
    return WorkerRegistration(url=f"http://127.0.0.1:{free_ports(1)[0]}", token=token, pool=pool)


@pytest.mark.parametrize("path", ["/", "/workers", "/workers/w-1", "/pools", "/healthz", "/metrics", "/openapi.json"])
async def test_looking_is_free(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 200


@pytest.mark.parametrize("key", ["", "wrong", "lp_api-key-of-a-test"])
async def test_changing_wants_the_admin_key_and_no_other(router: ServedRouter, key: str) -> None:
    async with router.admin(key) as stranger:
        for change in (stranger.register("w-9", _nowhere()), stranger.drain("w-1"), stranger.remove("w-1")):
            with pytest.raises(RouterUnauthorizedError, match="admin key"):
                await change
        assert [view.name for view in await stranger.workers()] == ["w-1"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", "", "10.0.0.1"])
async def test_a_host_that_is_not_loopback_is_turned_away(http: httpx.AsyncClient, host: str) -> None:
    answer = await http.get("/workers", headers={"Host": host})
    assert (answer.status_code, answer.json()["type"]) == (421, "misdirected")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9999", "[::1]:8081", "[::1]"])
async def test_the_near_end_of_a_forward_may_have_any_port(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/workers", headers={"Host": host})).status_code == 200


async def test_a_registered_worker_shows_its_tokens_fingerprint_and_never_the_token(
    admin: AdminClient, http: httpx.AsyncClient
) -> None:
    registration = _nowhere()
    view = await admin.register("w-2", registration)
    assert view.token_fingerprint == fingerprint(TOKEN)
    for path in ("/workers", "/workers/w-2", "/", "/metrics"):
        assert TOKEN not in (await http.get(path)).text
    await admin.remove("w-2")


async def test_registering_again_disturbs_nothing(admin: AdminClient, worker: PacedProcess) -> None:
    before = await admin.worker("w-1")
    same = WorkerRegistration(url=worker.url, token=worker.token, pool="interactive")
    assert await admin.register("w-1", same) == before


async def test_removing_again_is_success(admin: AdminClient) -> None:
    await admin.register("w-2", _nowhere())
    await admin.remove("w-2")
    await admin.remove("w-2")
    with pytest.raises(RouterNotFoundError, match="no worker is registered as w-2"):
        await admin.worker("w-2")


async def test_a_worker_that_is_not_there_is_unreachable_and_says_why(admin: AdminClient) -> None:
    await admin.register("w-2", _nowhere())

    async def unreachable() -> bool:
        view = await admin.worker("w-2")
        return view.health is WorkerHealth.UNREACHABLE and bool(view.reason)

    await until(unreachable, "w-2 is unreachable")
    pools = {pool.name: pool for pool in await admin.pools()}
    assert (pools["batch"].workers, pools["batch"].ready) == (1, 0)
    await admin.remove("w-2")


async def test_a_drained_worker_takes_no_job_until_it_is_registered_again(
    router: ServedRouter, worker: PacedProcess, admin: AdminClient
) -> None:
    drained = await admin.drain("w-1")
    assert drained.draining
    async with router.http() as http:
        assert (await http.post("/generate", json={"prompt": "a"})).status_code == 503
    await router.use("w-1", worker)
    assert not (await admin.worker("w-1")).draining


async def test_draining_a_stranger_is_not_found(admin: AdminClient) -> None:
    with pytest.raises(RouterNotFoundError):
        await admin.drain("nobody")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("Upper", {"url": "http://127.0.0.1:1", "token": TOKEN, "pool": "batch"}),
        ("w-3", {"url": "http://10.0.0.1:1", "token": TOKEN, "pool": "batch"}),
        ("w-3", {"url": "http://127.0.0.1:0", "token": TOKEN, "pool": "batch"}),
        ("w-3", {"url": "http://127.0.0.1:99999", "token": TOKEN, "pool": "batch"}),
        ("w-3", {"url": "http://127.0.0.1:٨٠", "token": TOKEN, "pool": "batch"}),
        ("w-3", {"url": f"unix:/{'é' * 54}", "token": TOKEN, "pool": "batch"}),
        ("w-3", {"url": "unix:/run/\0w", "token": TOKEN, "pool": "batch"}),
        ("w-3", {"url": "http://127.0.0.1:1", "token": "short", "pool": "batch"}),
        ("w-3", {"url": "http://127.0.0.1:1", "token": "é" * 20, "pool": "batch"}),
        ("w-3", {"url": "http://127.0.0.1:1", "token": f"{TOKEN}\r\nX: y", "pool": "batch"}),
        ("w-3", {"url": "http://127.0.0.1:1", "token": TOKEN}),
    ],
)
async def test_a_registration_that_makes_no_sense_is_refused(
    http: httpx.AsyncClient, name: str, body: dict[str, str]
) -> None:
    answer = await http.put(f"/workers/{name}", json=body, headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid_request")
    assert TOKEN not in answer.text


async def test_metrics_follow_a_job_from_its_request_to_its_attempt(
    router: ServedRouter, http: httpx.AsyncClient
) -> None:
    async with router.http() as public:
        answer = await public.post("/generate", json={"prompt": "a", "width": 256, "height": 256, "steps": 2})
        assert answer.status_code == 200
    lines = (await http.get("/metrics")).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['letterpress_jobs{pool="interactive",state="succeeded"}']) >= 1
    assert float(values['letterpress_attempts_total{end="finished",pool="interactive"}']) >= 1
    assert float(values['letterpress_http_requests_total{method="POST",route="/generate",status="200"}']) >= 1
    assert float(values['letterpress_job_service_seconds_count{pool="interactive"}']) >= 1
    assert values['letterpress_workers{health="ready",pool="interactive"}'] == "1.0"


async def test_no_client_can_make_a_label(router: ServedRouter, http: httpx.AsyncClient) -> None:
    async with router.http("") as stranger:
        await stranger.get("/only-a-client-says-this")
        await stranger.request("ONLY-A-CLIENT-DOES-THIS", "/healthz")  # some HTTP parsers refuse it by themselves
        await stranger.request("PROPFIND", "/healthz")

    async def counted() -> bool:
        return 'method="other"' in (await http.get("/metrics")).text

    await until(counted, "the request is counted, which comes after its answer")
    text = (await http.get("/metrics")).text
    assert "only-a-client" not in text.lower()
    assert 'route="unmatched"' in text


async def test_the_console_shows_pools_and_workers_and_may_load_nothing(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    assert "w-1" in page.text
    assert "interactive" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


async def test_a_client_says_when_nobody_answers() -> None:
    (port,) = free_ports(1)
    async with AdminClient(f"http://127.0.0.1:{port}") as admin:
        with pytest.raises(RouterAwayError, match=rf"GET \S+:{port}/healthz: the router does not answer"):
            await admin.health()
