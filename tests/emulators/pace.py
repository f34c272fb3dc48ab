"""What a paced worker is told (`Pace`), and what it tells of itself (`Ledger`, `Span`)."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, TypeAdapter

from worker.contract import CONTRACT_VERSION, Frozen, WorkerState


class Fault(StrEnum):
    NONE = "none"
    DROP = "drop"  # the stream's connection breaks after the first step; the generation goes on
    DROP_IMAGE = "drop_image"  # the connection breaks within the image, once
    SILENT = "silent"  # the stream stays open and says nothing, not even heartbeats
    DIGEST = "digest"  # the image is not the one that was announced
    BUSY = "busy"  # looks free, and takes nothing
    CRASH = "crash"  # every generation ends in an engine error
    DEAF = "deaf"  # DELETE succeeds and changes nothing: a zombie goes on
    DIE = "die"  # the process ends in the middle of the generation, as a crash in native code ends it


class Pace(Frozen):
    """How the worker behaves from now on. `times` bounds how many generations the fault meets."""

    step_s: float = Field(default=0.005, ge=0)
    heartbeat_s: float = Field(default=0.5, gt=0)
    state: WorkerState = WorkerState.READY
    fault: Fault = Fault.NONE
    times: int | None = Field(default=None, ge=0)
    suspicion: str = ""
    """What it says of every image; see `Finished.safety_reason`."""
    keep_s: float = Field(default=600, ge=0)
    tail_s: float = Field(default=0, ge=0)
    """After the last step."""
    padding: int = Field(default=0, ge=0)
    """Bytes that no compression takes away, in each image: real ones have some hundred thousand."""
    model: str = "paced"
    contract: str = CONTRACT_VERSION  # another: a worker of another release


class Ledger(Frozen):
    """Generation ids, one entry each time."""

    started: list[str]
    finished: list[str]
    fetched: list[str]
    cancelled: list[str]
    asked: int
    """PUTs, the refused ones included."""


class Span(Frozen):
    """When a generation was at work, by the machine's monotonic clock, in seconds."""

    name: str
    begun: float
    ended: float


SPANS = TypeAdapter(list[Span])
