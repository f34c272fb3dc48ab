"""One POST to a receiver: to an address that was judged, under its name, in bounded time, and nowhere else."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence

import pytest

from router.webhooks.addresses import Address, networks
from router.webhooks.post import Poster, Resolve
from router.webhooks.schedule import Answered, Unanswered
from tests.emulators.receiver import Receiver, receiver

HERE = networks("127.0.0.1")
NAME = "hook.example"


async def post(
    url: str,
    exceptions: str = "127.0.0.1",
    *,
    resolve: Resolve | None = None,
    trust: ssl.SSLContext | None = None,
    timeout_s: float = 15,
) -> Answered | Unanswered:
    made = Poster(networks(exceptions), resolve=resolve, trust=trust, timeout_s=timeout_s)
    try:
        return await made.post(url, {"webhook-id": "msg_1"}, b"{}")
    finally:
        made.close()


def names(*answers: Sequence[str]) -> Resolve:
    """A name server that answers so in turn, and goes on with its last."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[Address]:
        found = left.pop(0) if len(left) > 1 else left[0]
        return [ipaddress.ip_address(one) for one in found]

    return resolve


@pytest.fixture
async def there() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate of NAME's, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    files = str(folder / "certificate.pem"), str(folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-days", "2"),
            *("-out", files[0], "-keyout", files[1]),
        ],
        check=True,
        capture_output=True,
    )
    return files


async def test_it_is_sent_as_it_is_with_its_name_in_the_host_header(there: Receiver) -> None:
    url = there.url("/a/b?c=d", host=NAME)
    assert await post(url, resolve=names(["127.0.0.1"])) == Answered(204)
    (sent,) = there.got
    assert (sent.path, sent.body) == ("/a/b", b"{}")
    assert sent.headers["host"] == f"{NAME}:{there.port}"
    assert sent.headers["webhook-id"] == "msg_1"


async def test_tls_is_spoken_to_the_checked_address_under_the_urls_name(certificate: tuple[str, str]) -> None:
    trust = ssl.create_default_context(cafile=certificate[0])
    async with receiver(certificate) as there:
        good = await post(there.url(host=NAME, scheme="https"), resolve=names(["127.0.0.1"]), trust=trust)
        assert good == Answered(204)
        other = await post(there.url(host="other.example", scheme="https"), resolve=names(["127.0.0.1"]), trust=trust)
        assert isinstance(other, Unanswered)
        assert "certificate" in other.why
        unknown = await post(there.url(host=NAME, scheme="https"), resolve=names(["127.0.0.1"]))
        assert isinstance(unknown, Unanswered)
        assert len(there.got) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]", "0"])
async def test_no_way_to_write_this_machine_leads_to_it(there: Receiver, host: str, scheme: str) -> None:
    reply = await post(there.url(host=host, scheme=scheme), "")
    assert isinstance(reply, Unanswered)
    assert "where webhooks do not go" in reply.why
    assert there.got == []


async def test_a_name_that_moved_inside_since_is_refused_when_it_is_connected_to(there: Receiver) -> None:
    resolve = names(["127.0.0.1"], ["10.0.0.7"])
    made = Poster(HERE, resolve=resolve)
    assert await made.post(there.url(host=NAME), {}, b"{}") == Answered(204)
    reply = await made.post(there.url(host=NAME), {}, b"{}")
    made.close()
    assert isinstance(reply, Unanswered)
    assert f"{NAME} is at 10.0.0.7, where webhooks do not go" in reply.why
    assert len(there.got) == 1


async def test_of_a_names_addresses_only_those_that_are_allowed_are_tried(there: Receiver) -> None:
    assert await post(there.url(host=NAME), resolve=names(["10.0.0.7", "127.0.0.1"])) == Answered(204)


async def test_an_address_that_does_not_answer_is_no_reason_to_give_up_on_the_next(there: Receiver) -> None:
    resolve = names(["127.0.0.9", "127.0.0.1"])
    assert await post(there.url(host=NAME), "127.0.0.0/8", resolve=resolve) == Answered(204)


async def test_plain_http_goes_to_the_operators_exceptions_alone() -> None:
    reply = await post("http://hook.example/", resolve=names(["93.184.216.34"]))
    assert isinstance(reply, Unanswered)
    assert "only to public addresses, and by https" in reply.why


async def test_a_redirect_is_an_answer_and_is_not_followed(there: Receiver) -> None:
    async with receiver() as inside:
        there.answers.append(inside.url("/admin"))
        assert await post(there.url()) == Answered(307, location=inside.url("/admin"))
        assert inside.got == []


async def test_a_receiver_that_is_silent_is_left_in_time(there: Receiver) -> None:
    there.answers.append(0)
    assert await post(there.url(), timeout_s=0.3) == Unanswered("no answer within 0.3 s")


async def test_a_name_server_that_is_silent_is_left_in_time() -> None:
    async def silent(host: str, port: int) -> Sequence[Address]:
        await asyncio.Event().wait()
        return ()

    assert await post("https://hook.example/", resolve=silent, timeout_s=0.3) == Unanswered("no answer within 0.3 s")


async def test_retry_after_is_heard_if_it_is_a_number(there: Receiver) -> None:
    for said, heard in (("120", 120), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("9" * 30, None)):
        there.answers.append(503)
        there.retry_after = said
        assert await post(there.url()) == Answered(503, heard)


async def test_nobody_there_and_no_such_name_are_told_apart() -> None:
    away = await post("http://127.0.0.1:1/")
    assert isinstance(away, Unanswered)
    assert "the connection failed" in away.why
    unknown = await post("https://no-such-name.invalid/")
    assert isinstance(unknown, Unanswered)
    assert "no-such-name.invalid could not be resolved" in unknown.why
