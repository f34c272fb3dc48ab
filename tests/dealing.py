"""How the tests are dealt out to the processes that run them (`make test` starts two), and on whose time.

A file stays in one process, one test after the other: its tests may share what is dear to start. All of
tests/e2e is one scope, because it drives whole stacks of this checkout.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

END_TO_END = "tests/e2e/"

# An example that another process kept waiting for the processor is no counterexample.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


class ByFile(LoadScopeScheduling):  # type: ignore[misc] # published without types
    """One scope a file."""

    def _split_scope(self, nodeid: str) -> str:
        return END_TO_END if nodeid.startswith(END_TO_END) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)
