"""What 8-bit attention keeps of the shapes that came by. Its numbers are `test_fast_engine`'s and the GPU's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.attention import Recent

keys = st.lists(st.integers(0, 9), max_size=60)


@given(keys, st.integers(1, 6))
def test_those_that_came_by_last_are_kept_and_no_more(asked: list[int], most: int) -> None:
    made: list[int] = []
    drops: list[int] = []
    recent: Recent[int, str] = Recent(most, lambda: drops.append(len(made)))

    def make(key: int) -> str:
        made.append(key)
        return f"plan {key}"

    expected: list[int] = []
    kept: list[int] = []  # longest ago first
    for key in asked:
        assert recent.get(key, lambda key=key: make(key)) == f"plan {key}"  # type: ignore[misc]
        if key in kept:
            kept.remove(key)
        else:
            expected.append(key)
        kept = [*kept, key][-most:]
        assert len(recent) == len(kept)
    assert made == expected
    assert len(drops) == max(0, len(made) - most)
