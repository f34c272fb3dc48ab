"""The Automation API's stack, without the commands that its operations end with and whose answers nobody reads.

After each `up` it asks for the outputs, of which our program has none, twice, and after each `up` and `destroy` for a
summary, which we make from the events ourselves. Each is a start of the Pulumi engine: half a second of a processor.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pulumi.automation import OutputMap, Stack, UpdateSummary, Workspace
from pulumi.automation._stack import StackInitMode


class TerseStack(Stack):
    """Made if the backend has none of the name. Raises CommandError."""

    def __init__(self, name: str, workspace: Workspace) -> None:
        super().__init__(name, workspace, StackInitMode.CREATE_OR_SELECT)

    def outputs(self) -> OutputMap:
        return {}

    def info(self, show_secrets: bool = True) -> UpdateSummary:  # noqa: ARG002 - the parent's
        """Of nothing: it has to be there."""
        return UpdateSummary("", datetime.now(UTC), "", {}, {}, "")
