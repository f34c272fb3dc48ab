"""The shape of JSON, and how one differs from another: which fields there are, where, and of what type. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Shape:
    """The types that were seen, by path: `data[].offers[].price` → {"number"}. The whole has the empty path."""

    types: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def known(self, path: str) -> frozenset[str]:
        """But for null, which says nothing of what else may be there."""
        return self.types.get(path, frozenset()) - {"null"}


def shape_of(value: object, open_keys: frozenset[str] = frozenset()) -> Shape:
    """`open_keys` are names of fields whose own keys are not looked at."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path, kind in _walk(value, "", open_keys):
        found[path].add(kind)
    return Shape({path: frozenset(kinds) for path, kinds in found.items()})


def differences(expected: Shape, found: Shape) -> tuple[str, ...]:
    """What of `found` is not as in `expected`, a clause each; nothing is said of the inside of what is not there."""
    return tuple(_differences(expected, found))


def _differences(expected: Shape, found: Shape) -> Iterator[str]:
    for path in sorted({*expected.types, *found.types}):
        wanted, has, parent = expected.known(path), found.known(path), _parent(path)
        if path and (not expected.known(parent) or not found.known(parent)):
            continue  # one of them has nothing there at all, so it does not tell
        if path and not expected.known(parent) & found.known(parent):
            continue  # told of the parent
        if path not in found.types and wanted and not path.endswith("[]"):
            yield f"lacks {path} ({_said(wanted)})"
        elif path not in expected.types and not path.endswith("[]"):
            yield f"has {path} ({_said(has) or 'null'}), which is not known"
        elif wanted and has and not has <= wanted:
            yield f"{path or 'the whole'} is {_said(has)}, and not {_said(wanted)}"


def _walk(value: object, path: str, open_keys: frozenset[str]) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        yield path, "an object"
        for name, each in value.items():
            inner = f"{path}.{name}" if path else str(name)
            if name in open_keys:
                yield inner, _kind(each)
            else:
                yield from _walk(each, inner, open_keys)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield path, "a list"
        for each in value:
            yield from _walk(each, f"{path}[]", open_keys)
    else:
        yield path, _kind(value)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case Mapping():
            return "an object"
        case _:
            return "a list"


def _parent(path: str) -> str:
    return path.removesuffix("[]") if path.endswith("[]") else path.rpartition(".")[0]


def _said(kinds: Iterable[str]) -> str:
    return " or ".join(sorted(kinds))
