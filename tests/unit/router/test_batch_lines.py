"""A file's lines, however it comes in pieces; and how far each of them reaches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.batches.lines import MAX_LINE, LineTooLongError, lines_of


async def chunks(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@given(st.lists(st.sampled_from([b"", b"\n", b"a", b"bc\n", b"\nd", b"\n\n"])), st.integers(0, 2))
async def test_lines_are_those_of_the_whole_file_and_reading_may_go_on_after_any(
    pieces: list[bytes], skipped: int
) -> None:
    content = b"".join(pieces)
    found = [pair async for pair in lines_of(chunks(pieces))]
    whole = content.split(b"\n")
    assert [line for _, line in found] == (whole if whole[-1] else whole[:-1])
    for end, _ in found[skipped : skipped + 1]:
        rest = [pair async for pair in lines_of(chunks([content[end:]]), end)]
        assert rest == found[skipped + 1 :]


@pytest.mark.parametrize("pieces", [[b"ok\n" + b"x" * (MAX_LINE + 1)], [b"ok\n", b"x" * MAX_LINE, b"x"]])
async def test_a_line_that_never_ends_is_given_up(pieces: list[bytes]) -> None:
    with pytest.raises(LineTooLongError) as caught:
        _ = [pair async for pair in lines_of(chunks(pieces))]
    assert caught.value.line == 2
