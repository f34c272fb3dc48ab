"""What people are told of an operation, out of what the Pulumi engine says."""

from __future__ import annotations

from typing import Any

import pytest
from pulumi.automation import CommandResult
from pulumi.automation.events import EngineEvent

from infra.engine.events import Action, Change, EventReader, Failure, Progress, Stage, last_words, plain
from infra.provider.resource import Kind

URN = f"urn:pulumi:s::letterpress::{Kind.WORKER_HOST}::a-1-workers"
STACK = "urn:pulumi:s::letterpress::pulumi:pulumi:Stack::letterpress-s"


class Listener:
    """Reads events as the engine writes them, on a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[Progress] = []
        self.reader = EventReader(self.told.append, lambda: self.now)

    def step(self, kind: str, op: str, urn: str = URN, diffs: list[str] | None = None) -> None:
        metadata = {"op": op, "urn": urn, "type": urn.split("::")[2], "provider": "", "diffs": diffs}
        self.event({kind: {"metadata": metadata}})

    def diagnose(self, message: str, severity: str = "error", urn: str = URN, *, ephemeral: bool = False) -> None:
        said = {"message": message, "severity": severity, "urn": urn, "ephemeral": ephemeral, "color": "raw"}
        self.event({"diagnosticEvent": said})

    def event(self, event: dict[str, Any]) -> None:
        self.reader.read(EngineEvent.from_json({"sequence": 1, "timestamp": 0, **event}))


@pytest.fixture
def listener() -> Listener:
    return Listener()


def test_a_step_is_told_from_its_beginning_through_its_stages_to_its_end(listener: Listener) -> None:
    listener.step("resourcePreEvent", "create")
    listener.now += 2
    listener.diagnose("loading: text encoder", "info", ephemeral=True)
    listener.now += 3
    listener.step("resOutputsEvent", "create")
    common = ("a-1-workers", "WorkerHost", Action.CREATE)
    assert listener.told == [
        Progress(*common, Stage.BEGUN),
        Progress(*common, Stage.UNDERWAY, "loading: text encoder", 2.0),
        Progress(*common, Stage.DONE, "", 5.0),
    ]
    assert listener.reader.outcome().changes == (Change("a-1-workers", "WorkerHost", Action.CREATE),)
    assert listener.reader.outcome().seconds == 5.0


def test_an_update_because_of_a_bad_condition_alone_is_a_repair(listener: Listener) -> None:
    listener.step("resourcePreEvent", "update", diffs=["condition"])
    assert listener.reader.outcome().counts == {Action.REPAIR: 1}


def test_an_update_because_of_a_changed_input_is_one_whatever_its_condition(listener: Listener) -> None:
    listener.step("resourcePreEvent", "update", diffs=["port", "condition"])
    assert listener.reader.outcome().changes == (
        Change("a-1-workers", "WorkerHost", Action.UPDATE, ("port", "condition")),
    )


def test_the_two_halves_of_a_replacement_are_one_change(listener: Listener) -> None:
    for op in ("delete-replaced", "replace", "create-replacement"):
        listener.step("resourcePreEvent", op)
        listener.step("resOutputsEvent", op)
    assert listener.reader.outcome().counts == {Action.REPLACE: 1}


def test_looking_and_keeping_are_no_changes(listener: Listener) -> None:
    for op in ("refresh", "same"):
        listener.step("resourcePreEvent", op)
    assert not listener.reader.outcome().changes


def test_the_engines_own_resources_are_not_told_of(listener: Listener) -> None:
    listener.step("resourcePreEvent", "create", urn=STACK)
    listener.step("resOutputsEvent", "create", urn=STACK)
    assert not listener.told
    assert not listener.reader.outcome().changes


def test_a_failure_carries_the_providers_words_and_the_resource(listener: Listener) -> None:
    listener.step("resourcePreEvent", "create")
    listener.diagnose("<{%reset%}>1 error occurred:\n\t* creating urn:pulumi:s::x: the disk is full\n\n<{%reset%}>")
    listener.step("resOpFailedEvent", "create")
    listener.diagnose("update failed", urn=STACK)
    assert listener.told[-1].stage is Stage.FAILED
    assert listener.reader.outcome().failures == (Failure("a-1-workers", "the disk is full"),)
    assert str(listener.reader.outcome().failures[0]) == "a-1-workers: the disk is full"


def test_a_failure_of_no_resource_is_kept_if_it_is_all_there_is(listener: Listener) -> None:
    listener.diagnose("error: no plugin letterpress", urn="")
    assert listener.reader.outcome().failures == (Failure("", "error: no plugin letterpress"),)


def test_a_message_of_several_lines_keeps_them() -> None:
    assert plain("a-1 ended. Its log ends with:\nno weights\n  at line 3\nMend it.\n") == (
        "a-1 ended. Its log ends with:\nno weights\n  at line 3\nMend it."
    )


def test_a_listener_that_fails_stops_nothing_and_is_heard_of_in_the_end(listener: Listener) -> None:
    def fail(_: Progress) -> None:
        raise OSError("nobody reads this")

    listener.reader = EventReader(fail, lambda: listener.now)
    listener.step("resourcePreEvent", "create")
    listener.step("resOutputsEvent", "create")
    with pytest.raises(OSError, match="nobody reads this"):
        listener.reader.outcome()


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [
        ("", "error: could not get stack: incorrect passphrase", "could not get stack: incorrect passphrase"),
        (
            "Updating (s)\n stderr: of somebody",
            "warning: old\nerror: no space left",
            "warning: old\nerror: no space left",
        ),
        ("panic: nil", "", "panic: nil"),
        ("", "1\n2\n3\n4\n5\n6\n7", "3\n4\n5\n6\n7"),
        ("", "", "the engine ended with code 255 and said nothing"),
    ],
)
def test_a_failure_without_an_event_is_told_in_the_engines_last_words(stdout: str, stderr: str, words: str) -> None:
    assert last_words(str(CommandResult(stdout, stderr, 255))) == words
