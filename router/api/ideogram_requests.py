"""What Ideogram's clients send: forms or JSON, read into what a job is made of. Routes are `router.api.ideogram`'s.

    text_prompt, json_prompt   exactly one; there is no magic prompt here: text is drawn as it is
    resolution                 WIDTHxHEIGHT, any size that the open weights draw; 1024x1024 if it is left out
    rendering_speed            a sampler preset: TURBO V4_TURBO_12, DEFAULT V4_DEFAULT_20, QUALITY V4_QUALITY_48
    enable_copyright_detection only false: nothing here could detect it
Of v3's request what these weights can do: prompt, seed, resolution or aspect_ratio, rendering_speed, num_images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from math import log
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from router.api.explain import Fault
from router.api.refusals import Kind, RefusedError, of_faults, of_values, refused
from worker.captions import Caption
from worker.contract import Frozen, Preset, Prompt, Seed
from worker.sizes import HOSTED_1K, OFFICIAL, Size, nearest

T = TypeVar("T", bound=BaseModel)

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
DEFAULT_SIZE = Size(1024, 1024)
MAX_FIELDS = 64
NUMBERS = frozenset({"seed", "num_images"})
TRUTHS = frozenset({"enable_copyright_detection"})
OBJECTS = frozenset({"json_prompt"})
"""Fields of a form, whose values are all text, that are something else in JSON."""


class Speed(StrEnum):
    TURBO = "TURBO"
    DEFAULT = "DEFAULT"
    QUALITY = "QUALITY"

    @property
    def preset(self) -> Preset:
        return Preset.at(self)


def _speed(value: object) -> object:
    if value == "FLASH":
        raise ValueError(f"FLASH is not served, there are no weights for it; give one of {', '.join(Speed)}")
    return value


def _resolution(value: str) -> str:
    sides = re.fullmatch(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", value)
    if sides is None:
        raise ValueError(f"'{value[:20]}' is not WIDTHxHEIGHT in pixels, as in 1024x1024")
    size = Size(int(sides[1]), int(sides[2]))
    if not size.drawable:
        best = nearest(*size)
        raise ValueError(f"{size} cannot be drawn by the open weights; the nearest that can: {best}")
    return value


def _no_detection(value: bool | None) -> bool | None:
    if value:
        raise ValueError("true cannot be served: nothing here detects copyrights; leave it out")
    return value


RenderingSpeed = Annotated[Speed, BeforeValidator(_speed)]
Resolution = Annotated[
    str,
    AfterValidator(_resolution),
    Field(
        description="WIDTHxHEIGHT in pixels: sides of 256 to 2048, multiples of 16, up to 6:1. Of the hosted API's: "
        + ", ".join(map(str, OFFICIAL)),
        examples=["1024x1024"],
    ),
]
Detection = Annotated[bool | None, AfterValidator(_no_detection)]


class GenerateV4(Frozen):
    """Exactly one of `text_prompt` and `json_prompt`."""

    text_prompt: Prompt | None = Field(default=None, examples=["a letterpress print shop at night"])
    json_prompt: Caption | None = Field(default=None, description="A structured caption; in a form, its JSON.")
    resolution: Resolution | None = None
    rendering_speed: RenderingSpeed = Speed.DEFAULT
    enable_copyright_detection: Detection = None

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateV4:
        if (self.text_prompt is None) == (self.json_prompt is None):
            raise ValueError("text_prompt, json_prompt: give exactly one of them")
        if self.json_prompt is not None and self.json_prompt.high_level_description is None:
            raise ValueError("json_prompt: high_level_description is required in it")
        return self

    def wanted(self) -> dict[str, object]:
        """A GenerationRequest's fields, all but the seed."""
        width, height = _sides(self.resolution)
        shown = {"prompt": self.text_prompt} if self.json_prompt is None else {"caption": self.json_prompt}
        return {**shown, "width": width, "height": height, "preset": self.rendering_speed.preset}


NAMES_V4 = {"prompt": "text_prompt", "caption": "json_prompt", "width": "resolution", "height": "resolution"}
"""Our fields by this dialect's names."""
NAMES_V3 = {"width": "resolution", "height": "resolution"}
RATIOS = ("1x3", "3x1", "1x2", "2x1", "9x16", "16x9", "10x16", "16x10", "2x3", "3x2", "3x4", "4x3", "4x5", "5x4", "1x1")


def _ratio(value: str) -> str:
    if value not in RATIOS:
        raise ValueError(f"'{value[:20]}' is none of {', '.join(RATIOS)}")
    return value


class GenerateV3(Frozen):
    """What of v3's request can be honoured; every other field of it is refused by its name."""

    prompt: Prompt = Field(examples=["a letterpress print shop at night"])
    seed: Seed | None = None
    resolution: Resolution | None = None
    aspect_ratio: Annotated[str, AfterValidator(_ratio)] | None = Field(default=None, examples=["16x9"])
    rendering_speed: RenderingSpeed = Speed.DEFAULT
    magic_prompt: Literal["AUTO", "OFF"] = Field(default="AUTO", description="The prompt is drawn as it is.")
    num_images: Annotated[int, Field(strict=True, ge=1, le=8)] = 1
    style_type: Literal["AUTO", "GENERAL"] = Field(default="GENERAL", description="Say the style in the prompt.")
    enable_copyright_detection: Detection = None

    @model_validator(mode="after")
    def _one_shape(self) -> GenerateV3:
        if self.resolution is not None and self.aspect_ratio is not None:
            raise ValueError("resolution, aspect_ratio: give one of them, not both")
        return self

    def wanted(self) -> dict[str, object]:
        """As GenerateV4's."""
        size = _sides(self.resolution) if self.aspect_ratio is None else shaped(self.aspect_ratio)
        width, height = size
        return {"prompt": self.prompt, "width": width, "height": height, "preset": self.rendering_speed.preset}


def _sides(resolution: str | None) -> Size:
    if resolution is None:
        return DEFAULT_SIZE
    width, _, height = resolution.partition("x")
    return Size(int(width), int(height))


def shaped(aspect_ratio: str) -> Size:
    """The hosted API's size of about a megapixel with this ratio."""
    width, height = (int(side) for side in aspect_ratio.split("x"))
    return min(HOSTED_1K, key=lambda size: abs(log(size.width * height / (size.height * width))))


async def read(request: Request, model: type[T]) -> T:
    """The request's body, a form or JSON. Raises RefusedError."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in FORMS:
        found = await _form(request)
    elif media_type == "application/json":
        found = _object(await request.body())
    else:
        what = media_type or "of no type"
        raise refused(Kind.UNSUPPORTED_MEDIA_TYPE, f"the body is {what}; send {FORMS[0]} or application/json")
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise of_values(error) from error


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = from_json(body)
    except ValueError as error:
        raise refused(Kind.INVALID_JSON, f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RefusedError(of_faults((Fault((), "the body must be a JSON object"),)))
    return found


async def _form(request: Request) -> Mapping[str, Any]:
    try:
        async with request.form(max_files=MAX_FIELDS, max_fields=MAX_FIELDS) as form:
            fields = list(form.multi_items())
    except HTTPException as error:
        raise refused(Kind.INVALID_FORM, f"the body is not a form: {error.detail}") from None
    found: dict[str, Any] = {}
    for name, value in fields:
        if isinstance(value, UploadFile):
            raise RefusedError(of_faults((Fault((name,), "is a file, and no file can be used here"),)))
        if name in found:
            raise RefusedError(of_faults((Fault((name,), "is there more than once"),)))
        found[name] = _typed(name, value)
    return found


def _typed(name: str, text: str) -> object:
    """As JSON would have it; what is not of its type stays text, and is refused as such."""
    if name in NUMBERS and re.fullmatch(r"[0-9]{1,12}", text):
        return int(text)
    if name in TRUTHS and text.lower() in ("true", "false", "null", ""):
        return {"true": True, "false": False}.get(text.lower())
    if name in OBJECTS:
        try:
            return from_json(text)
        except ValueError as error:
            raise RefusedError(of_faults((Fault((name,), f"is not JSON: {error}"),))) from None
    return text


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """How a route that reads its body itself describes it: whole, since the document's parts are FastAPI's to name."""
    described = model.model_json_schema()
    parts = described.pop("$defs", {})

    def whole(schema: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(schema, list):
            return [whole(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        part = parts.get(schema.get("$ref", "").rpartition("/")[2], {})
        return {name: whole(each) for name, each in (part | schema).items() if name != "$ref"}

    content = {media_type: {"schema": whole(described)} for media_type in (FORMS[0], "application/json")}
    return {"requestBody": {"required": True, "content": content}}
