"""The tiny repository, built once a session, for every test that serves or reads it.

A test folder makes the fixtures its own by importing them in its conftest.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker's cache folder in which the tiny repository is already built."""
    from worker import tiny  # noqa: PLC0415 - imports torch: seconds, for whoever asks only

    cache = tmp_path_factory.mktemp("worker-cache")
    tiny.ensure(cache)
    return cache


@pytest.fixture(scope="session")
def tiny_repository(tiny_cache: Path) -> Path:
    """The folder of the repository itself."""
    from worker import tiny  # noqa: PLC0415

    return tiny.path(tiny_cache)
