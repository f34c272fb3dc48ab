"""OpenAI's words for an image. What they mean here:

    model             our name, a worker's own, or one of OpenAI's that clients have written down
    n                 so many images, with seeds seed, seed+1, …
    size              WIDTHxHEIGHT in pixels; auto is 1024x1024
    quality           a sampler preset: low V4_TURBO_12, medium V4_DEFAULT_20, high and above V4_QUALITY_48
    response_format   b64_json unless asked for url, as OpenAI's newest models answer
    output_format     png, jpeg, webp; output_compression is the lossy ones' quality, 100 the best
    stream            the finished images as events; partial images are never made, which OpenAI's contract allows
    user, safety_identifier   echoed and not used; background, moderation: only values that are true here anyway
More than OpenAI has (the clients' `extra_body`): seed, num_inference_steps, preset, pool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from router.contract import INTERACTIVE, PoolName
from worker.contract import MAX_SEED, Frozen, ImageFormat, Preset, Prompt, Seed, Steps

MODEL = "ideogram-4"
KNOWN_ABROAD = re.compile(
    r"(gpt-image-|chatgpt-image-|dall-e-)[a-z0-9.-]{1,60}"
    r"|ideogram-v[0-9]{1,2}a?(\.[0-9]{1,2})?(-(flash|turbo|default|balanced|quality))?"
)
"""Names of hosted image models, OpenAI's with their snapshots; here they all mean the one model that there is. Of
Ideogram's only those that are: `ideogram-v4-house` is somebody's own."""
MAX_IMAGES = 10
AUTO = "auto"
DEFAULT_SIDE = 1024
SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


class Quality(StrEnum):
    """OpenAI's words for it, old and new."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"
    STANDARD = "standard"
    HD = "hd"
    AUTO = "auto"

    @property
    def preset(self) -> Preset | None:
        """None: whatever is usual."""
        return _PRESETS.get(self)

    @classmethod
    def of(cls, preset: Preset) -> Quality:
        """In OpenAI's words of today."""
        return _QUALITIES[preset]


_PRESETS: Mapping[Quality, Preset] = {
    Quality.LOW: Preset.TURBO_12,
    Quality.MEDIUM: Preset.DEFAULT_20,
    Quality.STANDARD: Preset.DEFAULT_20,
    Quality.HIGH: Preset.QUALITY_48,
    Quality.XHIGH: Preset.QUALITY_48,
    Quality.MAX: Preset.QUALITY_48,
    Quality.HD: Preset.QUALITY_48,
}
_QUALITIES: Mapping[Preset, Quality] = {
    Preset.TURBO_12: Quality.LOW,
    Preset.DEFAULT_20: Quality.MEDIUM,
    Preset.QUALITY_48: Quality.HIGH,
}
NAMES = {
    "width": "size",
    "height": "size",
    "steps": "num_inference_steps",
    "format": "output_format",
    "quality": "output_compression",
}
"""Our fields by OpenAI's names."""


class ResponseFormat(StrEnum):
    B64_JSON = "b64_json"
    URL = "url"


def _size(size: str) -> str:
    if size != AUTO and not SIZE.fullmatch(size):
        raise ValueError(f"'{size[:20]}' is neither WIDTHxHEIGHT in pixels, as in 1024x1024, nor auto")
    return size


class ImagesRequest(Frozen):
    """Unknown fields are errors; those of OpenAI's that cannot be honoured are refused by name."""

    prompt: Prompt = Field(examples=["a letterpress print shop at night"])
    model: str | None = Field(default=None, examples=[MODEL])
    n: Annotated[int, Field(strict=True, ge=1, le=MAX_IMAGES)] | None = 1
    size: Annotated[str, AfterValidator(_size)] | None = Field(default=AUTO, examples=["1024x1024"])
    quality: Quality | None = Quality.AUTO
    response_format: ResponseFormat | None = ResponseFormat.B64_JSON
    output_format: ImageFormat | None = ImageFormat.PNG
    output_compression: Annotated[int, Field(strict=True, ge=0, le=100)] | None = Field(
        default=None, description="Of JPEG and WebP: 100 is the best and the largest. A PNG is never lossy."
    )
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = Field(default=None, description="There is no filter to set.")
    style: None = Field(default=None, description="Say it in the prompt.")
    stream: Annotated[bool, Field(strict=True)] | None = False
    partial_images: Annotated[int, Field(strict=True, ge=0, le=3)] | None = Field(
        default=None, description="With `stream` only. None are made: the finished image is the first that comes."
    )
    safety_identifier: str | None = Field(default=None, description="Echoed, and not used.")
    user: str | None = Field(default=None, description="Echoed as `safety_identifier`, and not used.")
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    preset: Preset | None = None
    pool: PoolName = INTERACTIVE

    @model_validator(mode="after")
    def _consistent(self) -> ImagesRequest:
        if self.output_compression not in (None, 100) and self.output_format in (None, ImageFormat.PNG):
            raise ValueError("output_compression: a PNG is never lossy; ask for output_format jpeg or webp")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images: they go with stream only")
        if self.stream and self.response_format is ResponseFormat.URL:
            raise ValueError("response_format: a streamed image comes as b64_json")
        samplers = [
            name for name in ("quality", "num_inference_steps", "preset") if getattr(self, name) not in (None, AUTO)
        ]
        if len(samplers) > 1:
            raise ValueError(f"{', '.join(samplers)}: each of them sets the sampler; give one")
        return self

    @property
    def by_url(self) -> bool:
        return self.response_format is ResponseFormat.URL

    @property
    def identifier(self) -> str | None:
        return self.safety_identifier or self.user or None

    def said(self) -> dict[str, object]:
        """A GenerationRequest's fields, those that the request speaks of."""
        found: dict[str, object] = {"prompt": self.prompt}
        if self.size is not None and (sides := SIZE.fullmatch(self.size)):
            found |= {"width": int(sides[1]), "height": int(sides[2])}
        preset = self.preset or (self.quality and self.quality.preset)
        if self.num_inference_steps is not None:
            found["steps"] = self.num_inference_steps
        elif preset is not None:
            found["preset"] = preset
        if self.output_format is not None and "output_format" in self.model_fields_set:
            found["format"] = self.output_format
        if self.output_compression is not None and self.output_format not in (None, ImageFormat.PNG):
            found["quality"] = max(1, self.output_compression)
        if self.seed is not None:
            found["seed"] = self.seed
        return found

    def wanted(self, seed: int) -> list[dict[str, object]]:
        """A GenerationRequest's fields for each of the images; `seed` where none was asked for."""
        usual: dict[str, object] = {"width": DEFAULT_SIDE, "height": DEFAULT_SIDE, "format": ImageFormat.PNG}
        one = usual | self.said()
        if "steps" not in one:
            one.setdefault("preset", Preset.DEFAULT_20)
        first = seed if self.seed is None else self.seed
        return [{**one, "seed": (first + i) % (MAX_SEED + 1)} for i in range(self.n or 1)]


class BatchedImagesRequest(ImagesRequest):
    """What a line of a batch may say: nobody listens to a stream there."""

    @model_validator(mode="after")
    def _unheard(self) -> BatchedImagesRequest:
        if self.stream:
            raise ValueError("stream: a batch's answers come in its files")
        return self


def particular(model: str | None) -> str | None:
    """The model that a worker must say of itself to serve; None: any will do."""
    return None if model is None or model == MODEL or KNOWN_ABROAD.fullmatch(model) else model
