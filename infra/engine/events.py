"""The engine's events as small frozen values: what is planned or done, to which resource, and how it went.

The engine speaks of steps, URNs and diagnostics; people and tests want a resource's name, a stage and the
provider's own words. Drawing them is the console's part.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pulumi.automation.events import DiagnosticEvent, EngineEvent, OpType, StepEventMetadata

from infra.provider.border import CONDITION
from infra.provider.resource import Kind, name_of

NOISE = re.compile(r"^(\d+ errors? occurred:|\s*\* )|^\s*\*?\s*([Cc]reating|[Uu]pdating|[Dd]eleting) urn:\S+: ")
"""What the engine wraps a provider's message in."""

RESULT = re.compile(r"\s*code: (?P<code>-?\d+)\n stdout: (?P<stdout>.*)\n stderr: (?P<stderr>.*)", re.DOTALL)
"""How the Automation API describes a command that failed."""
LAST_LINES = 5


class Action(StrEnum):
    """What a step does to a resource."""

    KEEP = "keep"
    CREATE = "create"
    UPDATE = "update"
    REPAIR = "repair"  # its description is the same, its condition is not
    REPLACE = "replace"
    DELETE = "delete"
    LOOK = "look"


class Stage(StrEnum):
    BEGUN = "begun"
    UNDERWAY = "underway"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Progress:
    """Something that has just happened to a resource. `seconds` counts from the step's beginning."""

    resource: str
    kind: str
    action: Action
    stage: Stage
    text: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A step that was planned or made; `because` names the properties that changed."""

    resource: str
    kind: str
    action: Action
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """What the provider said of a resource, or the engine of no one in particular (then empty)."""

    resource: str
    message: str

    def __str__(self) -> str:
        return f"{self.resource}: {self.message}" if self.resource else self.message


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one operation planned or did. Looks and kept resources are no changes."""

    changes: tuple[Change, ...]
    failures: tuple[Failure, ...]
    seconds: float

    @property
    def counts(self) -> Mapping[Action, int]:
        return Counter(change.action for change in self.changes)


OnProgress = Callable[[Progress], None]

_ACTIONS = {
    OpType.SAME: Action.KEEP,
    OpType.CREATE: Action.CREATE,
    OpType.UPDATE: Action.UPDATE,
    OpType.DELETE: Action.DELETE,
    OpType.REPLACE: Action.REPLACE,
    OpType.CREATE_REPLACEMENT: Action.REPLACE,
    OpType.DELETE_REPLACED: Action.REPLACE,
    OpType.REFRESH: Action.LOOK,
    OpType.READ: Action.LOOK,
}


class EventReader:
    """Reads one operation's events, in whichever thread they come, and keeps its account."""

    def __init__(self, on_progress: OnProgress, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = on_progress
        self._clock = clock
        self._begun = clock()
        self._running: dict[str, tuple[Change, float]] = {}
        self._changes: dict[str, Change] = {}
        self._failures: dict[Failure, None] = {}
        self._broken: Exception | None = None

    def read(self, event: EngineEvent) -> None:
        if event.resource_pre_event:
            self._begin(event.resource_pre_event.metadata)
        elif event.res_outputs_event:
            self._end(event.res_outputs_event.metadata, Stage.DONE)
        elif event.res_op_failed_event:
            self._end(event.res_op_failed_event.metadata, Stage.FAILED)
        elif event.diagnostic_event:
            self._diagnose(event.diagnostic_event)

    def outcome(self) -> Outcome:
        """The account. Raises what a listener raised, now that the operation has ended."""
        if self._broken:
            raise self._broken
        # "update failed" is said of the stack whenever a resource failed, and tells nothing besides.
        failures = [failure for failure in self._failures if failure.resource] or list(self._failures)
        return Outcome(tuple(self._changes.values()), tuple(failures), self._clock() - self._begun)

    def _begin(self, step: StepEventMetadata) -> None:
        change = _change(step)
        if change is None:
            return
        self._running[step.urn] = (change, self._clock())
        if change.action not in (Action.KEEP, Action.LOOK):
            self._changes[step.urn] = change
        self._report(step.urn, Stage.BEGUN)

    def _end(self, step: StepEventMetadata, stage: Stage) -> None:
        if step.urn in self._running:
            self._report(step.urn, stage)
            del self._running[step.urn]

    def _diagnose(self, event: DiagnosticEvent) -> None:
        urn = event.urn or ""
        if event.ephemeral:
            if urn in self._running:
                self._report(urn, Stage.UNDERWAY, event.message.strip())
        elif event.severity == "error":
            failure = Failure(name_of(urn) if Kind.of(urn) else "", plain(event.message))
            if failure.message:
                self._failures[failure] = None

    def _report(self, urn: str, stage: Stage, text: str = "") -> None:
        change, begun = self._running[urn]
        seconds = self._clock() - begun
        if self._broken:
            return
        try:
            self._tell(Progress(change.resource, change.kind, change.action, stage, text, seconds))
        except Exception as error:  # noqa: BLE001 - this thread drains the engine, which would wait for ever without it
            self._broken = error


def plain(message: str) -> str:
    """The provider's own words, out of what the engine wraps them in."""
    lines = (NOISE.sub("", NOISE.sub("", line)) for line in _uncoloured(message).strip().splitlines())
    return "\n".join(line.rstrip() for line in lines).strip()


ASIDE = re.compile(r"SDK \S+ \S+ WARN ")
"""What a library of a backend's says beside the engine: S3-compatible services answer without checksums."""


def last_words(failure: str) -> str:
    """What the engine said at its end, out of the description of a failure that it gave no event for."""
    result = RESULT.fullmatch(failure)
    if result is None:
        return plain(failure)
    said = plain(result["stderr"]) or plain(result["stdout"])
    lines = [line for line in said.splitlines() if not ASIDE.match(line)]
    words = "\n".join(lines[-LAST_LINES:]).removeprefix("error: ")
    return words or f"the engine ended with code {result['code']} and said nothing"


def _uncoloured(text: str) -> str:
    """Without the engine's colour marks (`<{%reset%}>`)."""
    return re.sub(r"<\{%.*?%\}>", "", text)


def _change(step: StepEventMetadata) -> Change | None:
    """The step as a change of one of our resources; None for the engine's own."""
    kind = Kind.of(step.urn)
    action = _ACTIONS.get(step.op)
    if kind is None or action is None:
        return None
    because = tuple(step.diffs or ())
    if action is Action.UPDATE and because == (CONDITION,):
        action = Action.REPAIR
    return Change(name_of(step.urn), kind.short, action, because)
