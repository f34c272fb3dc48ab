"""Images whose bytes are kept for who waits for them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.jobs import Image
from router.recent import RecentImages

MOST = 10


def image(name: str, data: bytes) -> Image:
    return Image(path=name, sha256="", bytes=len(data), media_type="image/png")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcd"), st.binary(max_size=MOST + 2))))
def test_no_more_is_kept_than_allowed_and_each_is_taken_once(steps: list[tuple[bool, str, bytes]]) -> None:
    recent, held = RecentImages(MOST), dict[str, bytes]()
    for keep, name, data in steps:
        if keep:
            recent.keep(image(name, data), data)
            held.pop(name, None)
            held[name] = data
            while sum(map(len, held.values())) > MOST:
                del held[next(iter(held))]
        else:
            assert recent.take(image(name, data)) == held.pop(name, None)
