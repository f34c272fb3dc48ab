"""What is read of a Pulumi state, and how one is mended that a killed engine left."""

from __future__ import annotations

import copy
from typing import Any

from infra.engine.state import Recorded, StackState, mended, recorded
from infra.provider.resource import Condition, Kind


def urn(kind: str, name: str) -> str:
    return f"urn:pulumi:s::letterpress::{kind}::{name}"


def resource(kind: Kind, name: str) -> dict[str, Any]:
    outputs = {"name": name, "condition": "running", "pid": 7}
    return {
        "urn": urn(kind, name),
        "custom": True,
        "id": name,
        "type": kind.value,
        "inputs": {"name": name},
        "outputs": outputs,
        "parent": urn("pulumi:pulumi:Stack", "letterpress-s"),
        "provider": "urn:…::letterpress::default::04da",
    }


def creating(kind: Kind, name: str) -> dict[str, Any]:
    begun = resource(kind, name)
    del begun["id"], begun["outputs"]
    return {"type": "creating", "resource": begun}


STACK = {"urn": urn("pulumi:pulumi:Stack", "letterpress-s"), "custom": False, "type": "pulumi:pulumi:Stack"}
MACHINE = resource(Kind.MACHINE, "a-1")


def deployment(*resources: dict[str, Any], pending: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "manifest": {"time": "2026-01-01T00:00:00Z", "magic": "m"},
        "secrets_providers": {"type": "passphrase", "state": {"salt": "v1:x"}},
        "resources": [STACK, *resources],
        "pending_operations": list(pending),
    }


def test_our_own_resources_are_read_with_their_condition() -> None:
    assert recorded(deployment(MACHINE)) == StackState(
        (Recorded("a-1", Kind.MACHINE, Condition.RUNNING, rented="a-1"),)
    )


def test_a_stack_that_was_never_brought_up_holds_nothing() -> None:
    assert recorded(None) == StackState()
    assert mended(None) is None


def test_a_whole_state_needs_no_mending() -> None:
    assert mended(deployment(MACHINE)) is None


def test_what_was_being_created_becomes_a_resource_of_which_only_the_description_is_known() -> None:
    broken = deployment(MACHINE, pending=(creating(Kind.WORKER_HOST, "a-1-workers"),))
    whole: Any = mended(broken)
    assert whole["pending_operations"] == []
    begun = whole["resources"][-1]
    assert begun["id"] == "a-1-workers"
    assert begun["inputs"] == {"name": "a-1-workers"}
    assert begun["outputs"] == {"name": "a-1-workers", "condition": "unknown", "reason": "its creation was cut short"}
    assert begun["provider"] == MACHINE["provider"]


def test_everything_else_is_carried_over_untouched() -> None:
    broken = deployment(MACHINE, pending=(creating(Kind.WORKER_HOST, "a-1-workers"),))
    before = copy.deepcopy(broken)
    whole: Any = mended(broken)
    assert whole["resources"][:2] == before["resources"]
    assert {key: whole[key] for key in ("manifest", "secrets_providers")} == {
        key: before[key] for key in ("manifest", "secrets_providers")
    }
    assert broken == before


def test_a_cut_short_update_or_deletion_is_left_to_the_next_look() -> None:
    pending = ({"type": "updating", "resource": MACHINE}, {"type": "deleting", "resource": MACHINE})
    whole: Any = mended(deployment(MACHINE, pending=pending))
    assert whole["resources"] == [STACK, MACHINE]
    assert whole["pending_operations"] == []


def test_a_replacement_that_was_being_created_takes_the_place_of_its_deleted_predecessor() -> None:
    predecessor = MACHINE | {"pendingReplacement": True}
    workers = resource(Kind.WORKER_HOST, "a-1-workers")
    whole: Any = mended(deployment(predecessor, workers, pending=(creating(Kind.MACHINE, "a-1"),)))
    assert [each["urn"] for each in whole["resources"]] == [STACK["urn"], MACHINE["urn"], workers["urn"]]
    assert whole["resources"][1]["outputs"]["condition"] == "unknown"
    assert "pendingReplacement" not in whole["resources"][1]


def test_the_engines_own_resources_are_not_taken_for_ours() -> None:
    provider = {"urn": urn("pulumi:providers:letterpress", "default"), "type": "pulumi:providers:letterpress"}
    whole: Any = mended(deployment(pending=({"type": "creating", "resource": provider},)))
    assert whole["resources"] == [STACK]
