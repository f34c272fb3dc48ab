"""Structured captions: the JSON that the weights were trained on, checked and spelled as the maker's guide says.

Plain text makes pictures too, but hardly any readable lettering. A caption is spelled without spaces, with
its letters as they are (no \\u escapes) and with its keys in one order; another order is another prompt.
Pydantic only: whoever reads the contract reads this.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json

MAX_COORDINATE = 1000
"""Of a bounding box: thousandths of the height or width, whatever the image's size."""
MAX_COLOURS = 16
MAX_ELEMENT_COLOURS = 5


class CaptionError(ValueError):
    """A prompt that is meant as a caption and is none; the message names each path in it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Said = Annotated[str, StringConstraints(min_length=1)]
Colour = Annotated[str, BeforeValidator(_upper), StringConstraints(pattern=r"^#[0-9A-F]{6}$")]
"""`#RRGGBB`; small letters are made capital ones, which the guide wants."""
Coordinate = Annotated[int, Field(strict=True, ge=0, le=MAX_COORDINATE)]


def _has_area(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    y_min, x_min, y_max, x_max = box
    if y_min >= y_max or x_min >= x_max:
        raise ValueError(f"{list(box)} has no area; it is [y_min, x_min, y_max, x_max], from the top left")
    return box


Box = Annotated[tuple[Coordinate, Coordinate, Coordinate, Coordinate], AfterValidator(_has_area)]
"""[y_min, x_min, y_max, x_max] from the top left corner, each 0 to 1000."""


class ElementType(StrEnum):
    OBJECT = "obj"
    TEXT = "text"


class Element(_Part):
    """Something in the picture; `text` is what is written there, letter by letter."""

    type: ElementType
    bbox: Box | None = None
    text: Said | None = None
    desc: Said
    color_palette: Annotated[tuple[Colour, ...], Field(min_length=1, max_length=MAX_ELEMENT_COLOURS)] | None = None

    @model_validator(mode="after")
    def _text_says_it(self) -> Element:
        if (self.type is ElementType.TEXT) != (self.text is not None):
            raise ValueError("text: an element of type text has it, and no other")
        return self


class Style(_Part):
    """How it looks. A photograph says `photo`, anything else `art_style`."""

    aesthetics: Said
    lighting: Said
    photo: Said | None = None
    medium: Said
    art_style: Said | None = None
    color_palette: Annotated[tuple[Colour, ...], Field(min_length=1, max_length=MAX_COLOURS)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Style:
        if (self.photo is None) == (self.art_style is None):
            raise ValueError("photo, art_style: give exactly one of them")
        return self


class Composition(_Part):
    """What is where."""

    background: Said
    elements: tuple[Element, ...]


class Caption(_Part):
    """A picture, described. The fields stand in the order in which they are spelled, in every part.

    (Of `photo` and `art_style` one is left out, so that one order serves both.)
    """

    high_level_description: Said | None = None
    style_description: Style | None = None
    compositional_deconstruction: Composition

    def spelled(self) -> str:
        """The caption as the text encoder reads it."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), separators=(",", ":"), ensure_ascii=False)


KEYS = frozenset(Caption.model_fields)


def read(prompt: str) -> Caption | None:
    """The caption that `prompt` is; None if it is plain text. CaptionError if it is meant as one and is none.

    An object with any of a caption's three keys is meant as one, and so is what begins as an object, names such
    a key and is broken JSON: drawn as plain text, either would be a bad picture without a word of why. Other
    JSON is text like any other.
    """
    if not prompt.lstrip().startswith("{"):
        return None
    try:
        found: Any = from_json(prompt)
    except ValueError as error:
        if any(f'"{key}"' in prompt for key in KEYS):
            raise CaptionError(f"reads like a JSON caption and is not JSON: {error}") from None
        return None
    if not isinstance(found, dict) or not KEYS & found.keys():
        return None
    try:
        return Caption.model_validate_json(prompt)
    except ValidationError as error:
        raise CaptionError(f"reads like a JSON caption and is none: {'; '.join(faults(error))}") from None


def faults(error: ValidationError) -> list[str]:
    """What is wrong, each with its path, e.g. `compositional_deconstruction.elements.0.bbox.2: …`."""
    return [
        f"{'.'.join(map(str, found['loc']))}: {found['msg'].removeprefix('Value error, ')}"
        for found in error.errors(include_url=False, include_input=False)
    ]
