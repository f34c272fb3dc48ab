"""The root of infra's error tree: what a command shows a person, without a traceback.

Every module has its own leaves beside what raises them (`CloudError`, `HostError`, `SetupError`, …). A
message says what happened, to which thing, and what to do next.
"""

from __future__ import annotations


class InfraError(Exception):
    """Something that a person has to know, said for that person."""
