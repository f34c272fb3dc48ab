"""What the worker's state is and what moves it: loading -> ready -> draining | broken. Values only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from worker.contract import FailureType, WorkerState

MAX_TROUBLE = 2
"""This many generations in a row without memory, or with an engine error, and the device is not trusted."""


@dataclass(frozen=True, slots=True)
class Health:
    """`reason` is for people; empty only when ready. Nothing leads out of broken, and only broken out of draining.

    `trouble` counts the generations in a row that failed for want of memory or by a fault of the engine.
    """

    state: WorkerState = WorkerState.LOADING
    reason: str = "starting"
    trouble: int = 0

    def loading(self, stage: str) -> Health:
        return replace(self, reason=stage) if self.state is WorkerState.LOADING else self

    def loaded(self) -> Health:
        return replace(self, state=WorkerState.READY, reason="") if self.state is WorkerState.LOADING else self

    def draining(self, reason: str) -> Health:
        if self.state in {WorkerState.DRAINING, WorkerState.BROKEN}:
            return self
        return replace(self, state=WorkerState.DRAINING, reason=reason)

    def broken(self, reason: str) -> Health:
        return self if self.state is WorkerState.BROKEN else replace(self, state=WorkerState.BROKEN, reason=reason)

    def succeeded(self) -> Health:
        return replace(self, trouble=0)

    def failed(self, failure: FailureType, detail: str) -> Health:
        """After a generation without an image. One that was cancelled or refused tells nothing of the device."""
        if failure not in {FailureType.OUT_OF_MEMORY, FailureType.ENGINE_ERROR}:
            return self
        troubled = replace(self, trouble=self.trouble + 1)
        if troubled.trouble < MAX_TROUBLE:
            return troubled
        return troubled.broken(f"{troubled.trouble} generations in a row failed; the last: {detail}")
