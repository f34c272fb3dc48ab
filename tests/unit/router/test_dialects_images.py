"""OpenAI's lines mean the same to the router's Batches and to `letterpress batch`: one table for both."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from router.client.batch import Defaults
from router.client.batch.errors import BadLineError
from router.client.batch.lines import Line, parse
from router.contract.dialects.images import MODEL, BatchedImagesRequest, Quality, particular
from worker.contract import GenerationRequest, ImageFormat, Preset

SEED = 11
USUAL: dict[str, object] = {"prompt": "a fox", "width": 1024, "height": 1024, "preset": Preset.DEFAULT_20, "seed": SEED}
WEBP: dict[str, object] = {"output_format": "webp"}

MEANT: list[tuple[dict[str, object], dict[str, object]]] = [
    ({}, {}),
    ({"quality": None, "size": None, "n": None, "output_format": None, "model": None, "user": None}, {}),
    ({"size": "auto"}, {}),
    ({"size": "512x256"}, {"width": 512, "height": 256}),
    ({"num_inference_steps": 3}, {"steps": 3, "preset": None}),
    ({"num_inference_steps": 3, "quality": "auto"}, {"steps": 3, "preset": None}),
    ({"preset": "V4_TURBO_12"}, {"preset": Preset.TURBO_12}),
    ({**WEBP, "output_compression": 0}, {"format": ImageFormat.WEBP, "quality": 1}),
    ({**WEBP, "output_compression": 100}, {"format": ImageFormat.WEBP, "quality": 100}),
    ({"output_format": "jpeg"}, {"format": ImageFormat.JPEG}),
    ({"output_compression": 100}, {}),
    ({"output_format": "png", "output_compression": 100}, {}),
    ({"seed": 0}, {"seed": 0}),
    ({"user": "me", "safety_identifier": "id", "moderation": "low", "background": "opaque"}, {}),
    ({"response_format": "url"}, {}),
    ({"stream": False, "partial_images": 0}, {}),
    ({"n": 1}, {}),
    ({"pool": "batch"}, {}),
]
MEANT += [({"quality": quality}, {"preset": quality.preset or Preset.DEFAULT_20}) for quality in Quality]
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"stream": True}, "stream"),
    ({"partial_images": 1}, "partial_images"),
    ({"quality": "best"}, "quality"),
    ({"quality": "max", "num_inference_steps": 3}, "quality"),
    ({"quality": "low", "preset": "V4_TURBO_12"}, "quality"),
    ({"output_compression": 80}, "output_compression"),
    ({**WEBP, "output_compression": 101}, "output_compression"),
    ({**WEBP, "output_compression": True}, "output_compression"),
    ({"size": "1000x1000"}, "width"),
    ({"size": "big"}, "size"),
    ({"background": "transparent"}, "background"),
    ({"style": "vivid"}, "style"),
    ({"moderation": "high"}, "moderation"),
    ({"n": 0}, "n"),
    ({"n": "1"}, "n"),
    ({"prompt": ""}, "prompt"),
    ({"input_fidelity": "high"}, "input_fidelity"),
    ({"priority": 1}, "priority"),
]


def body(fields: dict[str, object]) -> dict[str, object]:
    return {"prompt": "a fox", **fields}


def by_router(fields: dict[str, object]) -> GenerationRequest:
    (one,) = BatchedImagesRequest.model_validate(body(fields)).wanted(SEED)
    return GenerationRequest.model_validate(one)


def by_client(fields: dict[str, object], defaults: Defaults | None = None) -> GenerationRequest:
    found = {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": body(fields)}
    request = parse(Line(1, json.dumps(found).encode()), defaults or Defaults(), "0" * 16).request
    asked = request.model_dump(include=set(GenerationRequest.model_fields))
    if "seed" not in fields:
        asked["seed"] = SEED
    if asked["steps"] is None and asked["preset"] is None:
        asked["preset"] = Preset.DEFAULT_20  # what a job is that says nothing
    return GenerationRequest.model_validate(asked)


@pytest.mark.parametrize(("fields", "meant"), MEANT, ids=lambda fields: json.dumps(fields)[:60])
def test_a_line_means_the_same_to_both(fields: dict[str, object], meant: dict[str, object]) -> None:
    assert by_router(fields) == by_client(fields) == GenerationRequest.model_validate({**USUAL, **meant})


@pytest.mark.parametrize(("fields", "about"), REFUSED, ids=lambda fields: json.dumps(fields)[:60])
def test_a_line_is_refused_by_both_and_for_the_same(fields: dict[str, object], about: str) -> None:
    with pytest.raises(ValidationError, match=about):
        by_router(fields)
    with pytest.raises(BadLineError, match=about):
        by_client(fields)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (None, None),
        (MODEL, None),
        ("gpt-image-1", None),
        ("dall-e-3", None),
        ("chatgpt-image-latest", None),
        ("ideogram-v3", None),
        ("ideogram-v2a-turbo", None),
        ("ideogram-v4-house", "ideogram-v4-house"),
        # A worker's own name, though it begins as one of theirs.
        ("ideogram-ai/ideogram-4-nf4", "ideogram-ai/ideogram-4-nf4"),
        ("ideogram-4-fp8", "ideogram-4-fp8"),
        ("house-style", "house-style"),
    ],
)
def test_a_models_name_is_one_of_many_for_the_only_one_or_a_workers_own(model: str | None, wanted: str | None) -> None:
    assert particular(model) == wanted
    found = {"url": "/v1/images/generations", "body": body({"model": model})}
    assert parse(Line(1, json.dumps(found).encode()), Defaults(), "0" * 16).request.model == wanted


def test_a_batchs_defaults_fill_in_what_a_line_of_openais_leaves_out() -> None:
    defaults = Defaults(width=512, height=256, steps=4, format=ImageFormat.WEBP, quality=50)
    usual = {"width": 512, "height": 256, "steps": 4, "format": ImageFormat.WEBP, "quality": 50}
    only = {"prompt": "a fox", "seed": SEED}
    assert by_client({"size": "auto", "quality": "auto"}, defaults) == GenerationRequest.model_validate(only | usual)
    own = {"output_compression": 80, "quality": "max"}
    meant = {**usual, "steps": None, "preset": Preset.QUALITY_48, "quality": 80}
    assert by_client(own, defaults) == GenerationRequest.model_validate(only | meant)


def test_n_is_the_one_word_that_a_folder_of_single_images_has_no_room_for() -> None:
    assert len(BatchedImagesRequest.model_validate(body({"n": 2})).wanted(SEED)) == 2
    with pytest.raises(BadLineError, match="n: 2 cannot be served: a line is one image"):
        by_client({"n": 2})
