"""The input of a batch: lines in, requests out, one at a time. Pure but for reading the file.

A line is a prompt; or, where it begins with `{`, JSON: a JobRequest with an optional `id` (or `custom_id`), a
structured caption alone, or a line of OpenAI's Batch API. What a line leaves out, the batch's defaults fill in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from router.client.batch.errors import BadLineError
from router.client.batch.foreign import fields_of
from router.contract import JobRequest
from worker import captions
from worker.contract import MAX_BODY_BYTES, MAX_SEED, Frozen, GenerationRequest, ImageFormat, Preset

MAX_ID_CHARS = 200
MARK = b"\xef\xbb\xbf"
"""What some editors begin a UTF-8 file with."""


@dataclass(frozen=True, slots=True)
class Line:
    """`number` counts from 1, blank lines included; `text` is without its ending."""

    number: int
    text: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text).hexdigest()


class Defaults(Frozen):
    """What lines get that do not say it themselves. Part of what a batch is: the same again when it goes on."""

    width: int | None = None
    height: int | None = None
    steps: int | None = None
    preset: Preset | None = None
    format: ImageFormat | None = None
    quality: int | None = None
    pool: str | None = None
    priority: int | None = None
    tier: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a line asks for. `id` is the user's own name for it."""

    id: str | None
    request: JobRequest


def read_lines(path: Path) -> Iterator[Line]:
    """The lines that are not blank. One that is too long comes cut, and is refused by `parse`."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_BODY_BYTES + 1):
            number += 1
            text = (raw.removeprefix(MARK) if number == 1 else raw).rstrip(b"\r\n")
            rest = raw
            while len(rest) > MAX_BODY_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_BODY_BYTES + 1)
            if text.strip():
                yield Line(number, text)


def parse(line: Line, defaults: Defaults, batch: str) -> Asked:
    """What `line` of this batch asks for; its seed is its own, or follows from the batch and the line.

    Raises BadLineError.
    """
    if len(line.text) > MAX_BODY_BYTES:
        raise BadLineError(f"is longer than {MAX_BODY_BYTES} bytes")
    try:
        text = line.text.decode()
    except UnicodeDecodeError as error:
        raise BadLineError(f"is not UTF-8 (byte {error.start + 1})") from None
    try:
        fields, own_id = _fields(text, defaults)
        asked = _with_defaults(fields, defaults)
        asked.setdefault("seed", seed_of(batch, line))
        request = JobRequest.model_validate_json(to_json(asked))
        generation(request)
    except ValidationError as error:
        raise BadLineError(explained(error)) from None
    return Asked(own_id, request)


def generation(request: JobRequest) -> GenerationRequest:
    """The image itself, as a worker is asked for it. Raises ValidationError."""
    fields = request.model_dump(include=set(GenerationRequest.model_fields))
    return GenerationRequest.model_validate(fields)


def explained(error: ValidationError) -> str:
    """What is wrong with a request, for people."""
    said = "; ".join(captions.faults(error)).removeprefix(": ")
    said = said.replace("Extra inputs are not permitted", "is not a field of this request")
    return said.replace("Input should be None", "cannot be served here; leave it out")


def seed_of(batch: str, line: Line) -> int:
    """The seed of a line that names none: the same each time that the batch goes on."""
    drawn = hashlib.sha256(f"{batch}\0{line.number}\0{line.digest}".encode()).digest()
    return int.from_bytes(drawn[:8]) % (MAX_SEED + 1)


def _fields(text: str, defaults: Defaults) -> tuple[dict[str, Any], str | None]:
    if not text.lstrip().startswith("{"):
        return {"prompt": text}, None
    try:
        found = from_json(text)
    except ValueError as error:
        raise BadLineError(f"begins like JSON and is not: {error}") from None
    if captions.KEYS & found.keys() and not {"prompt", "caption", "body"} & found.keys():
        return {"prompt": text}, None
    own_id = _id(found)
    if isinstance(found.get("body"), dict):
        return fields_of(found, defaults.format), own_id
    return found, own_id


def _id(found: dict[str, Any]) -> str | None:
    """Taken out of `found`."""
    given = [found.pop(name) for name in ("id", "custom_id") if name in found]
    if not given or given == [None]:
        return None
    if len(given) > 1:
        raise BadLineError("id, custom_id: give one of them")
    if isinstance(given[0], int) and not isinstance(given[0], bool):
        return str(given[0])
    if not isinstance(given[0], str) or not 1 <= len(given[0]) <= MAX_ID_CHARS:
        raise BadLineError(f"id: is text of 1 to {MAX_ID_CHARS} characters, or a whole number")
    return given[0]


def _with_defaults(fields: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """`fields` win; those that hang together are taken from one of the two alone."""
    given = defaults.model_dump(mode="json", exclude_none=True)
    if fields.get("steps") is not None or fields.get("preset") is not None:
        given.pop("steps", None)
        given.pop("preset", None)
    if "width" in fields or "height" in fields:
        given.pop("width", None)
        given.pop("height", None)
    if "format" in fields:
        given.pop("quality", None)
    return given | {name: value for name, value in fields.items() if value is not None}
