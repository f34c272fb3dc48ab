"""A component's config.json, read as sizes that a dataclass names; what else it says is left to diffusers' classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from worker.engine import LoadError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)
else:
    T = TypeVar("T")


def described(folder: Path) -> Mapping[str, object]:
    """What `folder`/config.json says; LoadError if that is no JSON object."""
    path = folder / "config.json"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read ({error}); fetch the repository again") from error
    return _named(read, path, "it")


def part(of: Mapping[str, object], name: str, folder: Path) -> Mapping[str, object]:
    """The object `name` within what `folder`/config.json says; LoadError if there is none."""
    return _named(of.get(name), folder / "config.json", name)


def sizes(kind: type[T], of: Mapping[str, object], folder: Path) -> T:
    """A `kind` (numbers and tuples of them, above 0) with what `of` says of its fields, and its defaults.

    LoadError names the field of `folder`/config.json that is something else.
    """
    hints = get_type_hints(kind)
    found: dict[str, object] = {}
    for name in (field.name for field in fields(kind) if field.name in of):
        value = of[name]
        if hints[name] in {int, float}:
            right = _number(value, hints[name])
        else:
            right = isinstance(value, list) and all(_number(one, int) for one in value)
            value = tuple(value) if isinstance(value, list) else value
        if not right:
            raise LoadError(f"{folder}/config.json: {name} is {value!r}, which is no size; fetch the repository again")
        found[name] = value
    return kind(**found)


def _number(value: object, kind: type) -> bool:
    return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool) and value > 0


def _named(value: object, path: Path, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise LoadError(f"{path}: {name} is {value!r}, where names and values belong; fetch the repository again")
    return value
