"""What becomes of a webhook after a try, whom it may go to, and what it is signed with."""

from __future__ import annotations

import base64
import ipaddress
from datetime import UTC, datetime

import openai
import pytest
import standardwebhooks
from hypothesis import given, settings
from hypothesis import strategies as st

from router.webhooks import Again, Dead, Delivered
from router.webhooks.addresses import allowed, networks, public
from router.webhooks.schedule import JITTER, MAX_RETRY_AFTER_S, PAUSES_S, TRIES, Answered, Unanswered, judge
from router.webhooks.signing import headers, secret_of

draws = st.floats(0, 1, exclude_max=True)
tries = st.integers(1, TRIES)
bad = st.one_of(
    st.integers(300, 599).filter(lambda status: status != 410).map(Answered),
    st.sampled_from(["no answer within 15 s", "the connection failed"]).map(Unanswered),
)


@given(st.integers(200, 299), tries, draws)
def test_any_2xx_is_success(status: int, number: int, draw: float) -> None:
    assert judge(Answered(status), number, draw) == Delivered(status)


@given(tries, draws)
def test_410_ends_it_for_the_url(number: int, draw: float) -> None:
    verdict = judge(Answered(410, retry_after_s=5), number, draw)
    assert isinstance(verdict, Dead)
    assert verdict.gone


@given(bad, st.integers(1, TRIES - 1), draws)
def test_anything_else_is_tried_again_after_a_pause_that_is_drawn(
    reply: Answered | Unanswered, number: int, draw: float
) -> None:
    verdict = judge(reply, number, draw)
    assert isinstance(verdict, Again)
    planned = PAUSES_S[number - 1] * 1000
    assert (1 - JITTER) * planned - 1 <= verdict.pause_ms <= (1 + JITTER) * planned
    assert verdict.status == (reply.status if isinstance(reply, Answered) else None)


@given(bad, draws)
def test_the_last_try_is_the_last(reply: Answered | Unanswered, draw: float) -> None:
    verdict = judge(reply, TRIES, draw)
    assert isinstance(verdict, Dead)
    assert not verdict.gone
    assert f"given up after {TRIES} tries" in verdict.detail


def test_it_goes_on_for_days() -> None:
    assert sum(PAUSES_S) * (1 - JITTER) > 2 * 86_400
    assert list(PAUSES_S) == sorted(PAUSES_S)


@given(st.integers(0, 10**9), st.integers(1, TRIES - 1), draws)
def test_a_receiver_may_ask_for_a_longer_pause_but_not_for_ever(wait_s: int, number: int, draw: float) -> None:
    verdict = judge(Answered(503, retry_after_s=wait_s), number, draw)
    assert isinstance(verdict, Again)
    assert verdict.pause_ms >= 1000 * min(wait_s, MAX_RETRY_AFTER_S)
    assert verdict.pause_ms <= 1000 * max(MAX_RETRY_AFTER_S, PAUSES_S[number - 1] * (1 + JITTER))


def test_a_redirect_says_why_it_was_not_followed() -> None:
    verdict = judge(Answered(307, location="http://169.254.169.254/"), 1, 0.5)
    assert isinstance(verdict, Again)
    assert "a redirect to http://169.254.169.254/, which is not followed" in verdict.detail


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",  # noqa: S104
        "168.63.129.16", "192.0.0.8", "192.0.2.1", "198.18.0.1", "203.0.113.7", "224.0.0.1", "239.1.1.1", "240.0.0.1",
        "255.255.255.255", "192.88.99.1", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1",
        "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1",
        "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:0:a00:1::1",
    ],
)  # fmt: skip
def test_no_address_of_an_inside_is_public(address: str) -> None:
    assert not public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]
)
def test_public_addresses_are_public_however_they_are_written(address: str) -> None:
    assert public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_changes_nothing(address: ipaddress.IPv4Address) -> None:
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert public(ipaddress.ip_address(wrapped)) is public(address)


@given(st.ip_addresses())
def test_an_exception_is_as_wide_as_it_says(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert allowed(address, (ipaddress.ip_network(address),))
    assert allowed(address, ()) is public(address)


def test_exceptions_hold_for_the_mapped_address_too() -> None:
    exceptions = networks("10.0.0.0/8, 127.0.0.1")
    assert allowed(ipaddress.ip_address("::ffff:10.9.9.9"), exceptions)
    assert allowed(ipaddress.ip_address("127.0.0.1"), exceptions)
    assert not allowed(ipaddress.ip_address("127.0.0.2"), exceptions)


@settings(deadline=None, max_examples=10)  # the first call imports much
@given(st.binary(min_size=24, max_size=64), st.binary(max_size=200).map(lambda raw: raw.hex().encode()))
def test_the_fields_own_libraries_accept_the_signature(entropy: bytes, body: bytes) -> None:
    secret, now = secret_of(entropy), int(datetime.now(UTC).timestamp())
    sent = headers([secret], "msg_1", now, b'"%s"' % body)
    standardwebhooks.Webhook(secret).verify(b'"%s"' % body, sent)
    openai.OpenAI(api_key="x").webhooks.verify_signature(b'"%s"' % body, sent, secret=secret)


def test_during_a_rotation_either_secret_verifies_and_another_does_not() -> None:
    old, new, other = (secret_of(bytes([number]) * 32) for number in (1, 2, 3))
    sent = headers([new, old], "msg_1", int(datetime.now(UTC).timestamp()), b"{}")
    for secret in (old, new):
        standardwebhooks.Webhook(secret).verify(b"{}", sent)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(other).verify(b"{}", sent)


def test_a_secret_is_written_as_the_libraries_want_it() -> None:
    secret = secret_of(bytes(range(32)))
    assert secret.startswith("whsec_")
    assert base64.b64decode(secret.removeprefix("whsec_")) == bytes(range(32))
