"""Waiting for something to become true, with a deadline, instead of sleeping for long enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(what: Callable[[], T | None], within_s: float, why: str, every_s: float = 0.05) -> T:
    """The first true answer of `what`; AssertionError saying `why` if none comes in time."""
    deadline = time.monotonic() + within_s
    while True:
        answer = what()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {why}"
        time.sleep(every_s)
