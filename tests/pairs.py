"""Rows in which every two settings of different parameters meet at least once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
Pair = tuple[str, T, str, T]


def pairwise(parameters: Mapping[str, Sequence[T]]) -> list[dict[str, T]]:
    """Few rows, though not the fewest: each takes, name by name, what meets the most pairs that are left."""
    left = {
        (one, a, other, b)
        for one, other in itertools.combinations(parameters, 2)
        for a in parameters[one]
        for b in parameters[other]
    }
    rows = []
    while left:
        one, a, other, b = min(left, key=repr)
        row = {one: a, other: b}
        for name, values in parameters.items():
            if name not in row:
                row[name] = max(values, key=lambda value: len(_met({**row, name: value}, parameters) & left))
        left -= _met(row, parameters)
        rows.append({name: row[name] for name in parameters})
    return rows


def _met(row: Mapping[str, T], names: Mapping[str, Sequence[T]]) -> set[Pair[T]]:
    there = [name for name in names if name in row]
    return {(one, row[one], other, row[other]) for one, other in itertools.combinations(there, 2)}
