"""Several routers and consumers on one PostgreSQL and a Redis of their own, as a stack file describes them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from infra.edge.nginx import find_nginx
from infra.hosts import UnitState
from infra.hosts.local import LocalHost
from infra.paths import StackPaths
from infra.provider.resource import Condition
from infra.provider.router_host import RouterHostResource
from infra.provider.router_inputs import RouterHostInputs, RouterHostState
from infra.provider.site import Site
from infra.setup.for_tests import find_redis
from tests.ports import free_ports
from tests.waiting import eventually

pytestmark = [
    pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed (make deploy installs it)"),
    pytest.mark.skipif(find_redis() is None, reason="redis-server is not installed (make setup-test installs it)"),
]


def unheard(_: str) -> None:
    """Nobody follows."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="lp-", dir="/tmp") as run:
        Path(run).chmod(0o711)
        monkeypatch.setenv("LETTERPRESS_RUN", f"{run}/r")
        site = Site(StackPaths.of("several", tmp_path / "home"), {})
        site.paths.create()
        yield site


@pytest.fixture
def described(site: Site, postgres_url: str) -> RouterHostInputs:
    edge, admin, redis = free_ports(3)
    return RouterHostInputs(
        program=(sys.executable, "-m", "router"),
        code="1",
        edge_host="127.0.0.1",
        edge_port=edge,
        admin_host="127.0.0.1",
        admin_port=admin,
        keys={"redis-password": site.secrets.fingerprint("redis-password")},
        database=postgres_url,
        redis_port=redis,
        processes=2,
        consumers=1,
    )


@pytest.fixture
async def up(site: Site, described: RouterHostInputs) -> AsyncIterator[RouterHostState]:
    resource = RouterHostResource(site)
    try:
        yield await resource.ensure(described, None, unheard)
    finally:
        await resource.delete(RouterHostState.model_validate(described.model_dump()), unheard)


async def test_two_routers_a_consumer_and_their_redis_come_up_and_are_taken_down_to_one(
    up: RouterHostState, site: Site, described: RouterHostInputs
) -> None:
    assert up.condition is Condition.RUNNING
    assert {unit.name for unit in up.units} == {"router", "router-2", "edge", "consumer", "redis"}
    host = LocalHost("router", site.paths.router, site.paths.logs)
    for number in range(2):
        answer = await host.get(described.admin_port + number, "/healthz")
        assert answer
        assert answer[0] == 200
    with pytest.raises(AuthenticationError):
        Redis(port=described.redis_port).ping()
    assert Redis(port=described.redis_port, password=site.secrets.read("redis-password")).ping()
    consumer = site.paths.logs / "consumer.log"
    eventually(lambda: "consumer_takes_jobs" in consumer.read_text(), 60, "the consumer takes jobs")

    one = described.model_copy(update={"processes": 1})
    again = await RouterHostResource(site).ensure(one, up, unheard)
    assert again.condition is Condition.RUNNING
    assert (await host.observe("router-2")).state is UnitState.STOPPED
