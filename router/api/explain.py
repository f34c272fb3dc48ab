"""What is wrong with a request, field by field, said so that the sender can put it right.

Pydantic finds the faults; this module only words them: which field, what it was, what it should be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic_core import ErrorDetails

from worker.contract import MAX_SIDE, MIN_SIDE, SIDE_STEP

_PLACES = ("body", "query", "path", "header")
_SHOWN = 60


class FaultCode(StrEnum):
    """OpenAI's codes for what can be wrong with a field; the other dialects do not show them."""

    MISSING = "missing_required_parameter"
    UNKNOWN = "unknown_parameter"
    INVALID = "invalid_value"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `fields` are the names as the sender wrote them; none for the body itself."""

    fields: tuple[str, ...]
    message: str
    code: FaultCode = FaultCode.INVALID

    def __str__(self) -> str:
        return f"{', '.join(self.fields)}: {self.message}" if self.fields else self.message


def faults(errors: Iterable[ErrorDetails], names: Mapping[str, str] | None = None) -> tuple[Fault, ...]:
    """Pydantic's errors in words. `names` gives a dialect's own name for a field of ours."""
    found = (renamed(_fault(error), names or {}) for error in errors)
    return tuple(dict.fromkeys(found))  # both sides of a dialect's one `size` may have the same fault


def parsed(message: str) -> Fault:
    """Reads `field, field: what is wrong` as our own validators and the workers write it."""
    head, colon, rest = message.partition(": ")
    fields = tuple(head.split(", "))
    return Fault(fields, rest) if colon and all(name.isidentifier() for name in fields) else Fault((), message)


def renamed(fault: Fault, names: Mapping[str, str]) -> Fault:
    """The same fault of a dialect's own fields; two of ours may be one of theirs."""
    fields = tuple(dict.fromkeys(names.get(field, field) for field in fault.fields))
    return Fault(fields, fault.message, fault.code)


def nearest_sides(side: int) -> tuple[int, ...]:
    """The one or two sides in pixels that the weights can make nearest to `side`, smaller first."""
    below = side // SIDE_STEP * SIDE_STEP
    bounded = (min(max(candidate, MIN_SIDE), MAX_SIDE) for candidate in (below, below + SIDE_STEP))
    return tuple(dict.fromkeys(bounded))


def _fault(error: ErrorDetails) -> Fault:
    place = [str(part) for part in error["loc"]]
    field = ".".join(place[1:] if place and place[0] in _PLACES else place)
    fields = (field,) if field else ()
    match error["type"]:
        case "missing":
            return Fault(fields, "is required", FaultCode.MISSING) if field else Fault((), "a JSON body is required")
        case "extra_forbidden":
            return Fault(fields, "is not a field of this request", FaultCode.UNKNOWN)
        case "value_error":
            said = str(error.get("ctx", {}).get("error", error["msg"]))
            return Fault(fields, said) if field else parsed(said)
        case "model_attributes_type" | "model_type" | "dict_type" if not field:
            return Fault((), "the body must be a JSON object")
        case _:
            return Fault(fields, _wrong_value(error))


def _wrong_value(error: ErrorDetails) -> str:  # noqa: C901, PLR0911 - one line a kind of fault
    value, limits = error["input"], error.get("ctx", {})
    match error["type"]:
        case "multiple_of" if isinstance(value, int) and limits["multiple_of"] == SIDE_STEP:
            nearest = " or ".join(map(str, nearest_sides(value)))
            return f"{value} is not a multiple of {SIDE_STEP}; the nearest that can be made: {nearest}"
        case "greater_than_equal":
            return f"{_shown(value)} is too small; the smallest is {limits['ge']}"
        case "less_than_equal":
            return f"{_shown(value)} is too large; the largest is {limits['le']}"
        case "none_required":
            return f"{_shown(value)} cannot be served here; leave it out"
        case "string_too_short" if value == "":
            return "is empty"
        case "string_too_long":
            return f"has {len(str(value))} characters; at most {limits['max_length']} are read"
        case "enum" | "literal_error":
            return f"{_shown(value)} is not one of the choices: {limits['expected']}"
        case "int_type" | "int_parsing" | "int_from_float" | "int_parsing_size":
            return f"{_shown(value)} is not a whole number"
        case "string_type" | "string_unicode":
            return f"{_shown(value)} is not text"
        case "tuple_type" | "list_type":
            return f"{_shown(value)} is not a list"
        case "string_pattern_mismatch":
            return f"{_shown(value)} does not match {limits['pattern']}"
        case _:
            return f"{_shown(value)}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _shown(value: object) -> str:
    """A value as JSON, cut short: enough to recognise it, never a whole prompt back."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
