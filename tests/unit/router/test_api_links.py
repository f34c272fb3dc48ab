"""A signed URL opens one image for a while, and nothing else opens any."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from hypothesis import given
from hypothesis import strategies as st

from router.api.links import ROUNDING_S, Links

LINKS = Links("https://images.example", b"k" * 32, 3600)
NOW = 1_800_000_000.5


def _parts(url: str) -> tuple[str, int, str]:
    split = urlsplit(url)
    query = parse_qs(split.query)
    return split.path.removeprefix("/artifacts/").removesuffix(".png"), int(query["expires"][0]), query["signature"][0]


def test_a_link_lies_under_the_public_url() -> None:
    assert LINKS.url("job_1", NOW).startswith("https://images.example/artifacts/job_1.png?expires=")


@given(st.from_regex(r"job_[0-9a-z]{26}", fullmatch=True), st.floats(0, 4e9))
def test_what_was_signed_is_allowed(job_id: str, now: float) -> None:
    assert LINKS.allows(*_parts(LINKS.url(job_id, now)))


@given(st.floats(0, 4e9))
def test_a_link_is_good_for_its_lifetime_and_little_more(now: float) -> None:
    _, expires, _ = _parts(LINKS.url("job_1", now))
    assert 3600 <= expires - int(now) <= 3600 + ROUNDING_S


def test_asking_again_soon_gives_the_same_link() -> None:
    moment = ROUNDING_S * 6_000_000
    assert LINKS.url("job_1", moment) == LINKS.url("job_1", moment + ROUNDING_S - 1)


@given(st.text(max_size=80))
def test_no_other_signature_is_allowed(signature: str) -> None:
    _, expires, ours = _parts(LINKS.url("job_1", NOW))
    assert LINKS.allows("job_1", expires, signature) is (signature == ours)


def test_a_signature_is_good_for_no_other_job_and_no_other_time() -> None:
    _, expires, signature = _parts(LINKS.url("job_1", NOW))
    assert not LINKS.allows("job_2", expires, signature)
    assert not LINKS.allows("job_1", expires + 1, signature)


def test_another_key_makes_another_signature() -> None:
    _, expires, signature = _parts(LINKS.url("job_1", NOW))
    assert not Links("https://images.example", b"j" * 32, 3600).allows("job_1", expires, signature)


def test_the_key_does_not_show() -> None:
    assert "kkkk" not in repr(LINKS)
