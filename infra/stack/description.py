"""YAML with the lines kept, and errors that name the setting, what stands there, and the line.

What a setting means is `infra.stack`'s. PyYAML takes the last of two equal keys in silence; here they are
an error, because a pool that was described twice is a machine that nobody ordered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from infra.errors import InfraError

SHOWN_CHARACTERS = 60
PYDANTIC_SUBJECT = re.compile(r"^(Input|String|Value) (?=should )")

Path = tuple[str | int, ...]
"""Keys and indices from the document's root."""


class DescriptionError(InfraError):
    """A description cannot be used; the message says which setting, in which file and line."""


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML document: its plain data, and the line (from 1) of every setting by its path."""

    source: str
    data: object
    lines: Mapping[Path, int]

    def place(self, path: Path) -> str:
        """`file line n`, by the nearest setting that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.source} line {self.lines[path]}" if path else self.source


def read_yaml(text: str, source: str) -> Document:
    """Read one YAML document. Raises DescriptionError for bad syntax and for a key given twice."""
    lines: dict[Path, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _note_lines(node, (), source, lines)
        data: object = loader.construct_document(node) if node is not None else None
    except RecursionError:
        raise DescriptionError(f"{source}: not usable: a part of it contains itself (by `*`)") from None
    except yaml.MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DescriptionError(f"{source}{where}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise DescriptionError(f"{source}: not YAML: {error}") from None
    if not isinstance(data, dict):
        raise DescriptionError(f"{source}: should be settings (`name: …`), and is {_shown(data)}")
    return Document(source, data, lines)


def _note_lines(node: yaml.Node, path: Path, source: str, lines: dict[Path, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            line = key.start_mark.line + 1
            if inner in lines:
                raise DescriptionError(
                    f"{_dotted(inner)}: given twice, in {source} lines {lines[inner]} and {line}; keep one of them"
                )
            lines[inner] = line
            _note_lines(value, inner, source, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[*path, index] = value.start_mark.line + 1
            _note_lines(value, (*path, index), source, lines)


def say(error: ValidationError, document: Document, model: type[BaseModel]) -> str:
    """Everything that is wrong with the document, a line each."""
    names = _names(model.model_json_schema())
    return "\n".join(_line(details, document, names) for details in error.errors())


def _line(details: ErrorDetails, document: Document, names: frozenset[str]) -> str:
    path: Path = details["loc"]
    found = _shown(details["input"])
    match details["type"]:
        case "missing":
            problem = "is missing"
        case "extra_forbidden":
            near = get_close_matches(str(path[-1]), names, n=1)
            problem = "there is no such setting" + (f"; did you mean `{near[0]}`?" if near else "")
        case "secret":
            problem = details["msg"]
        case "port" | "tier":
            # Found when settings were compared with others; the message itself begins with its own.
            path = tuple(str(details["ctx"]["path"]).split("."))
            return f"{details['msg']}, in {document.place(path)}"
        case _:
            problem = f"{PYDANTIC_SUBJECT.sub('', details['msg'])}, got {found}"
    return f"{_dotted(path)}: {problem}, in {document.place(path)}"


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path if part != "[key]") or "the file"


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _names(schema: object) -> frozenset[str]:
    """Every setting's name anywhere in a JSON Schema, to guess what a misspelt one meant."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        own = frozenset(properties) if isinstance(properties, dict) else frozenset[str]()
        return own.union(*(_names(inner) for inner in schema.values()))
    if isinstance(schema, list):
        return frozenset[str]().union(*(_names(inner) for inner in schema))
    return frozenset()
