"""The local stack that the walks through it share, brought up once because that is the dearest part; tiny weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.stack import UserStack
from tests.tiny import tiny_cache, tiny_repository

__all__ = ["tiny_cache", "tiny_repository"]


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserStack]:
    """`deployed` holds what bringing it up printed."""
    stack = UserStack(tmp_path_factory.mktemp("e2e"))
    try:
        stack.deployed = stack.ok("deploy")
        yield stack
    finally:
        stack.make("destroy")
