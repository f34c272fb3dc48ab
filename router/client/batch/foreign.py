"""A line in the form of OpenAI's Batch API, as the JobRequest that it means. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from router.client.batch.errors import BadLineError
from worker.contract import Preset

OUR_OWN = re.compile(r"ideogram.*|gpt-image.*|dall-e.*|chatgpt-image.*")
"""Names of models that OpenAI's clients have in their code, and that mean no worker in particular."""
QUALITIES: Mapping[str, Preset | None] = {
    "low": Preset.TURBO_12,
    "medium": Preset.DEFAULT_20,
    "standard": Preset.DEFAULT_20,
    "high": Preset.QUALITY_48,
    "hd": Preset.QUALITY_48,
    "auto": None,
}
"""As the router's OpenAI dialect has them."""
NOT_OF_THE_IMAGE = frozenset({"user", "moderation", "response_format", "stream", "partial_images"})
RENAMED = {"output_format": "format", "output_compression": "quality", "num_inference_steps": "steps"}

Fields = dict[str, Any]


def fields_of(line: Mapping[str, Any]) -> Fields:
    """The JobRequest's fields. Raises BadLineError for what a batch cannot serve."""
    if unknown := line.keys() - {"method", "url", "body"}:
        raise BadLineError(f"{', '.join(sorted(unknown))}: is not a field of a batch's line")
    body: Fields = {name: value for name, value in line["body"].items() if value is not None}
    match line.get("url"):
        case None | "/v1/jobs":
            return body
        case "/generate":
            return {"steps": 25, **body}
        case "/v1/images/generations":
            return _of_images(body)
        case other:
            raise BadLineError(f"url: {str(other)[:60]!r} is none of /v1/images/generations, /v1/jobs, /generate")


def _of_images(body: Fields) -> Fields:
    asked: Fields = {}
    for name, value in body.items():
        if name in MEANINGS:
            asked |= MEANINGS[name](value)
        elif name not in NOT_OF_THE_IMAGE:
            asked[RENAMED.get(name, name)] = value
    return asked


def _n(value: object) -> Fields:
    if value != 1:
        raise BadLineError(f"n: {value!r} cannot be served: a line is one image")
    return {}


def _background(value: object) -> Fields:
    if value not in ("auto", "opaque"):
        raise BadLineError(f"background: {value!r} cannot be served; images are opaque")
    return {}


def _size(value: object) -> Fields:
    if value == "auto":
        return {}
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", str(value))
    if found is None:
        raise BadLineError(f"size: {value!r} is neither WIDTHxHEIGHT nor auto")
    return {"width": int(found[1]), "height": int(found[2])}


def _quality(value: object) -> Fields:
    if value not in QUALITIES:
        raise BadLineError(f"quality: {value!r} is none of {', '.join(QUALITIES)}")
    preset = QUALITIES[str(value)]
    return {} if preset is None else {"preset": preset}


def _model(value: object) -> Fields:
    return {} if OUR_OWN.fullmatch(str(value)) else {"model": value}


MEANINGS: Mapping[str, Callable[[object], Fields]] = {
    "n": _n,
    "background": _background,
    "size": _size,
    "quality": _quality,
    "model": _model,
}
