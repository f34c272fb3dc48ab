"""The rows that pairwise tests are made of."""

from __future__ import annotations

import itertools

from tests.pairs import pairwise


def test_every_pair_meets_and_the_rows_are_few() -> None:
    parameters = {name: list(range(6)) for name in "abcdefg"}
    rows = pairwise(parameters)
    for one, other in itertools.combinations(parameters, 2):
        assert {(row[one], row[other]) for row in rows} == set(itertools.product(range(6), repeat=2))
    assert 36 <= len(rows) <= 70
