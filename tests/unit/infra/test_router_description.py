"""What a stack file may say of the router host, and what is said of what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack import StackDescription, parse
from infra.stack.description import DescriptionError

TLS = "tls: {domain: images.example.com, accept_terms: true}"
HOST = f"host: {{address: 192.0.2.5, user: ubuntu}}, edge: {{{TLS}}}"
POSTGRES = "database: postgresql://letterpress@db.internal/letterpress"
REDIS = "redis: redis://cache.internal:6379/0"
STACK = """\
name: mine
cloud: hosts
model: tiny
hosts: {{h: {{address: 192.0.2.10}}}}
router: {{{router}}}
pools: {{interactive: {{machines: 1, first_port: 9100}}}}
"""


def described(router: str) -> StackDescription:
    return parse(STACK.format(router=router), "stacks/x.yaml", Path("/stacks"))


def test_on_a_machine_of_its_own_the_edge_is_public_unless_it_says_otherwise() -> None:
    router = described(HOST).router
    assert (router.edge.host, router.edge.port) == ("0.0.0.0", 443)  # noqa: S104
    inner = HOST.replace("edge: {", "edge: {host: 10.0.0.5, port: 8443, ")
    assert (described(inner).router.edge.host, described(inner).router.edge.port) == ("10.0.0.5", 8443)


def test_a_redis_brings_a_consumer_unless_it_is_told_how_many() -> None:
    assert described("").router.driving == 0
    assert described(f"{POSTGRES}, {REDIS}").router.driving == 1
    assert described(f"{POSTGRES}, redis: here, consumers: 3, processes: 2").router.driving == 3


def test_a_description_that_was_kept_is_read_back_as_it_was() -> None:
    for router in (HOST, f"{HOST}, {POSTGRES}, redis: here, processes: 2"):
        kept = described(router)
        assert StackDescription.model_validate_json(kept.model_dump_json()) == kept


@pytest.mark.parametrize(
    ("router", "said"),
    [
        ("host: {address: 192.0.2.5}", "should have edge.tls with a host"),
        (HOST.replace("edge: {", "edge: {host: 127.0.0.1, "), "nobody could reach it there"),
        (HOST.replace("192.0.2.5", "192.0.2.10"), "192.0.2.10 is hosts.h"),
        ("processes: 2", "should have database and redis for several processes"),
        ("consumers: 1", "should have database and redis for consumers"),
        (REDIS, "SQLite is for one router alone"),
        (f"{POSTGRES}, {REDIS}, consumers: 0", "no job is ever begun"),
        ("database: mysql://a@b/c", "should be postgresql://USER@HOST/NAME"),
        (f"{POSTGRES}, redis: localhost", "should be redis://HOST:PORT/0, or `here`"),
        ("database_password: '${P}'", "should have a database for database_password"),
        (f"{POSTGRES}, redis: here, redis_password: '${{P}}'", "should have a redis URL for redis_password"),
        (f"{POSTGRES}, redis: here, processes: 2, admin: {{port: 9099}}", "port 9100 is already taken by"),
    ],
)
def test_what_does_not_go_together_is_refused(router: str, said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        described(router)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "router",
    ["database: 'postgresql://u:hunter2@db/x'", f"{POSTGRES}, redis: 'redis://:hunter2@cache/0'"],
)
def test_a_password_in_a_url_is_refused_and_not_shown(router: str) -> None:
    with pytest.raises(DescriptionError, match=r"should hold no password") as caught:
        described(router)
    assert "hunter2" not in str(caught.value)


def test_a_router_elsewhere_cannot_have_this_computers_workers() -> None:
    text = STACK.format(router=HOST).replace("cloud: hosts", "cloud: local")
    text = text.replace("hosts: {h: {address: 192.0.2.10}}\n", "")
    with pytest.raises(DescriptionError, match="workers of `cloud: local` listen on this computer alone"):
        parse(text, "x", Path("/stacks"))
