"""What of JSON's shape is told apart, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.doctor.shape import differences, shape_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=12,
)
EXPECTED = {"data": [{"id": "x", "price": 1.5, "address": None, "tags": ["t"]}], "total": 1}


@given(JSON)
def test_nothing_differs_from_itself(value: object) -> None:
    assert differences(shape_of(value), shape_of(value)) == ()


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"data": [], "total": 0}, ()),
        ({"data": [{"id": "y", "price": 2, "address": "10.0.0.1", "tags": []}], "total": 9}, ()),
        ({"data": [{"id": "y", "price": None, "address": None, "tags": None}], "total": 9}, ()),
        (
            {"data": [{"id": 7, "price": 2, "address": None, "tags": [{}]}], "total": 1},
            ("data[].id is a number, and not text", "data[].tags[] is an object, and not text"),
        ),
        (
            {"data": [{"id": "y", "address": None, "tags": [], "spot": True}], "total": 1},
            ("lacks data[].price (a number)", "has data[].spot (true or false), which is not known"),
        ),
        ([{"id": "y"}], ("the whole is a list, and not an object",)),
    ],
)
def test_what_differs_is_named_by_its_place(found: object, told: tuple[str, ...]) -> None:
    assert differences(shape_of(EXPECTED), shape_of(found)) == told


def test_keys_that_are_users_own_are_not_compared() -> None:
    keys = frozenset({"env"})
    assert differences(shape_of({"env": {"A": "1"}}, keys), shape_of({"env": {"B": 2}}, keys)) == ()
