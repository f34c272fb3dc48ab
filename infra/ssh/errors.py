"""What can go wrong between us and a machine, each with what to do about it."""

from __future__ import annotations

from infra.hosts import HostError

SHOWN_LINES = 12


class SshError(HostError):
    """A machine cannot be worked on through SSH; the message names it and what to try."""


class UnreachableError(SshError):
    """Nobody answers at its address, or the connection was lost."""


class LoginRefusedError(SshError):
    """The machine answers and does not take our key."""


class HostKeyChangedError(SshError):
    """Another key than the pinned one: nothing was sent."""


class SudoRefusedError(SshError):
    """The user may not become root there."""


class CommandError(SshError):
    """A command ended with another status than 0, or not in time. `status` is None for the latter."""

    def __init__(self, machine: str, doing: str, status: int | None, output: str, advice: str = "") -> None:
        self.machine, self.doing, self.status, self.output = machine, doing, status, output
        how = "did not end in time" if status is None else f"failed (status {status})"
        last = (
            "\n".join(f"    {line}" for line in output.strip().splitlines()[-SHOWN_LINES:]) or "    (it said nothing)"
        )
        tail = f"\n{advice}" if advice else ""
        super().__init__(f"{machine}: {doing} {how}. Its last lines:\n{last}{tail}")
