"""Which sizes can be drawn, and which is nearest to one that cannot."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.contract import GenerationRequest
from worker.sizes import HOSTED_1K, HOSTED_2K, OFFICIAL, Size, nearest

any_side = st.integers(1, 10_000)
grid_side = st.integers(16, 128).map(lambda units: units * 16)


@given(any_side, any_side)
def test_the_nearest_can_be_drawn_and_stays_itself(width: int, height: int) -> None:
    found = nearest(width, height)
    assert found.drawable
    assert nearest(*found) == found
    assert nearest(height, width) == found[::-1]


@given(grid_side, grid_side)
def test_the_contract_and_this_list_agree(width: int, height: int) -> None:
    try:
        GenerationRequest(prompt="a fox", width=width, height=height, seed=1)
    except ValidationError:
        assert not Size(width, height).drawable
    else:
        assert Size(width, height).drawable
        assert nearest(width, height) == (width, height)


@given(st.integers(256, 2048), st.integers(256, 2048))
def test_what_is_within_the_bounds_moves_by_less_than_a_grid_step(width: int, height: int) -> None:
    if max(width, height) <= 6 * min(width, height):
        found = nearest(width, height)
        assert abs(found.width - width) < 16
        assert abs(found.height - height) < 16


@given(any_side, any_side)
def test_the_shape_is_kept_as_far_as_it_can_be(width: int, height: int) -> None:
    found = nearest(width, height)
    shape = min(max(log(width / height), -log(6)), log(6))
    # A grid step either way of the shorter side, which is 256 at least.
    assert abs(log(found.width / found.height) - shape) <= 2 * log(272 / 256)


def test_the_hosted_sizes_that_the_weights_draw_are_the_official_ones() -> None:
    assert len(HOSTED_1K) == 15
    assert len(HOSTED_2K) == 23
    assert all(size in OFFICIAL for size in HOSTED_1K)
    assert [size for size in HOSTED_2K if size in OFFICIAL] == [(2048, 2048)]


@pytest.mark.parametrize(
    ("asked", "given_instead"),
    [
        ((2496, 1664), (2048, 1360)),
        ((1440, 2880), (1024, 2048)),
        ((3328, 1248), (2048, 768)),
        ((1000, 1000), (1008, 1008)),
        ((100, 100), (256, 256)),
        ((8000, 100), (2048, 352)),
    ],
)
def test_some_that_people_ask_for(asked: tuple[int, int], given_instead: tuple[int, int]) -> None:
    assert nearest(*asked) == given_instead


def test_the_nearest_of_a_list_is_of_that_list() -> None:
    assert nearest(1920, 1080, among=OFFICIAL) in OFFICIAL
    assert str(nearest(1300, 700, among=HOSTED_1K)) == "1280x720"


@pytest.mark.parametrize("asked", [(0, 512), (512, -1)])
def test_what_is_no_size_has_no_nearest(asked: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is no size"):
        nearest(*asked)
