"""Structured captions: what is one, how it is spelled, and what is said of a faulty one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker import captions
from worker.captions import Caption, CaptionError
from worker.contract import GenerationRequest

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
colours = st.from_regex(r"#[0-9A-Fa-f]{6}", fullmatch=True)


def palettes(most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(colours, min_size=1, max_size=most)


@st.composite
def boxes(draw: st.DrawFn) -> list[int]:
    y_min, y_max = sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))
    x_min, x_max = sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))
    return [y_min, x_min, y_max, x_max]


def some(required: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]) -> Any:  # noqa: ANN401
    """Objects with their keys in any order."""
    drawn = st.fixed_dictionaries(required, optional=optional)
    return drawn.flatmap(lambda made: st.permutations(list(made.items()))).map(dict)


BOXED = {"bbox": boxes(), "color_palette": palettes(5)}
elements = some({"type": st.just("obj"), "desc": words}, BOXED) | some(
    {"type": st.just("text"), "text": words, "desc": words}, BOXED
)
LOOK = {"aesthetics": words, "lighting": words, "medium": words}
styles = some({**LOOK, "photo": words}, {"color_palette": palettes(16)}) | some(
    {**LOOK, "art_style": words}, {"color_palette": palettes(16)}
)
described = some(
    {"compositional_deconstruction": some({"background": words, "elements": st.lists(elements, max_size=4)}, {})},
    {"high_level_description": words, "style_description": styles},
)

EXAMPLE = {
    "compositional_deconstruction": {
        "elements": [
            {"desc": "a sign", "text": "Zürich 狐", "bbox": [0, 10, 500, 1000], "type": "text"},
            {"color_palette": ["#ff8800"], "type": "obj", "desc": "a fox"},
        ],
        "background": "a street",
    },
    "style_description": {"medium": "film", "photo": "50 mm", "lighting": "dusk", "aesthetics": "calm"},
    "high_level_description": "a fox reads a sign",
}
SPELLED = (
    '{"high_level_description":"a fox reads a sign",'
    '"style_description":{"aesthetics":"calm","lighting":"dusk","photo":"50 mm","medium":"film"},'
    '"compositional_deconstruction":{"background":"a street","elements":['
    '{"type":"text","bbox":[0,10,500,1000],"text":"Zürich 狐","desc":"a sign"},'
    '{"type":"obj","desc":"a fox","color_palette":["#FF8800"]}]}}'
)


def test_a_caption_is_spelled_as_the_guide_says() -> None:
    assert Caption.model_validate(EXAMPLE).spelled() == SPELLED


def test_an_illustration_names_its_style_after_its_medium() -> None:
    style = {
        "art_style": "ukiyo-e",
        "color_palette": ["#000000"],
        "medium": "print",
        "lighting": "l",
        "aesthetics": "a",
    }
    spelled = Caption.model_validate({**EXAMPLE, "style_description": style}).spelled()
    assert list(json.loads(spelled)["style_description"]) == [
        "aesthetics",
        "lighting",
        "medium",
        "art_style",
        "color_palette",
    ]


def keys(value: object, order: dict[str, int]) -> None:
    """Everywhere in order."""
    if isinstance(value, dict):
        assert list(value) == sorted(value, key=order.__getitem__)
        for inside in value.values():
            keys(inside, order)
    elif isinstance(value, list):
        for inside in value:
            keys(inside, order)


ORDER = [
    *("high_level_description", "style_description", "compositional_deconstruction", "background", "elements"),
    *("aesthetics", "lighting", "photo", "medium", "art_style", "type", "bbox", "text", "desc", "color_palette"),
]


@given(described)
def test_it_is_read_from_what_it_is_spelled_as_and_its_keys_are_always_in_order(made: dict[str, Any]) -> None:
    caption = Caption.model_validate(made)
    spelled = caption.spelled()
    assert captions.read(spelled) == caption
    assert captions.read(json.dumps(made, indent=2)) == caption
    assert Caption.model_validate_json(spelled).spelled() == spelled
    keys(json.loads(spelled), {key: place for place, key in enumerate(ORDER)})
    assert json.dumps(json.loads(spelled), separators=(",", ":"), ensure_ascii=False) == spelled


@given(described)
def test_a_prompt_that_is_a_caption_is_drawn_as_one(made: dict[str, Any]) -> None:
    by_prompt = GenerationRequest(prompt=json.dumps(made), seed=1)
    by_caption = GenerationRequest(caption=Caption.model_validate(made), seed=1)
    assert by_prompt.text == by_caption.text == Caption.model_validate(made).spelled()
    assert GenerationRequest.model_validate_json(by_caption.model_dump_json()) == by_caption


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip).filter(lambda text: "{" not in text))
def test_any_other_prompt_is_drawn_as_it_is(prompt: str) -> None:
    assert captions.read(prompt) is None
    assert GenerationRequest(prompt=prompt, seed=1).text == prompt


@pytest.mark.parametrize(
    "prompt",
    ["{'json': [1, 2]}", '{"a": 1}', "{}", "{ a curly brace", '["compositional_deconstruction"]', '{"a": "{"', "{{7}}"],
)
def test_json_that_is_no_caption_is_text(prompt: str) -> None:
    assert captions.read(prompt) is None


def changed(path: list[str | int], value: object) -> dict[str, Any]:
    made = json.loads(json.dumps(EXAMPLE))
    inside = made
    for part in path[:-1]:
        inside = inside[part]
    if value is None:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return dict(made)


COMPOSITION = "compositional_deconstruction"
WRONG: list[tuple[list[str | int], object, str]] = [
    ([COMPOSITION], None, "compositional_deconstruction: Field required"),
    ([COMPOSITION, "background"], None, "compositional_deconstruction.background: Field required"),
    ([COMPOSITION, "elements", 0, "text"], None, "compositional_deconstruction.elements.0: text: an element"),
    ([COMPOSITION, "elements", 1, "text"], "x", "compositional_deconstruction.elements.1: text: an element"),
    ([COMPOSITION, "elements", 0, "bbox", 2], 1001, "compositional_deconstruction.elements.0.bbox.2: "),
    ([COMPOSITION, "elements", 0, "bbox", 0], True, "compositional_deconstruction.elements.0.bbox.0: "),
    ([COMPOSITION, "elements", 0, "bbox"], [5, 5, 5, 9], "compositional_deconstruction.elements.0.bbox: "),
    ([COMPOSITION, "elements", 0, "bbox"], [1, 2, 3], "compositional_deconstruction.elements.0.bbox.3: "),
    ([COMPOSITION, "elements", 1, "type"], "object", "compositional_deconstruction.elements.1.type: "),
    ([COMPOSITION, "elements", 1, "color_palette"], ["#000000"] * 6, "elements.1.color_palette: "),
    ([COMPOSITION, "elements", 1, "color_palette"], ["red"], "elements.1.color_palette.0: "),
    (["style_description", "photo"], None, "style_description: photo, art_style: give exactly one"),
    (["style_description", "art_style"], "ink", "style_description: photo, art_style: give exactly one"),
    (["style_description", "color_palette"], ["#000000"] * 17, "style_description.color_palette: "),
    (["style_description", "lighting"], None, "style_description.lighting: Field required"),
    (["high_level_description"], "", "high_level_description: "),
    (["mood"], "calm", "mood: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG, ids=[said for _, _, said in WRONG])
def test_a_faulty_caption_is_refused_with_its_path_in_either_form(
    path: list[str | int], value: object, said: str
) -> None:
    made = changed(path, value)
    with pytest.raises(CaptionError, match=r"reads like a JSON caption and is none") as caught:
        captions.read(json.dumps(made))
    assert said in str(caught.value)
    with pytest.raises(ValidationError) as direct:
        GenerationRequest.model_validate({"caption": made, "seed": 1})
    assert any(said in fault for fault in captions.faults(direct.value))


def test_broken_json_that_names_a_captions_key_is_refused_rather_than_drawn() -> None:
    with pytest.raises(ValidationError, match=r"prompt: reads like a JSON caption and is not JSON: .*line 1"):
        GenerationRequest(prompt=SPELLED[:-1] + ",}", seed=1)


def test_lone_surrogates_in_a_caption_are_refused() -> None:
    with pytest.raises(CaptionError):
        captions.read(SPELLED.replace("狐", "\\ud800"))


def test_a_picture_has_a_prompt_or_a_caption() -> None:
    caption = Caption.model_validate(EXAMPLE)
    for both in ({}, {"prompt": "a fox", "caption": caption}):
        with pytest.raises(ValidationError, match="prompt, caption: give exactly one"):
            GenerationRequest.model_validate({**both, "seed": 1})


def test_a_caption_is_bounded_as_it_is_spelled() -> None:
    long = Caption.model_validate({**EXAMPLE, "high_level_description": "x" * 32_768})
    with pytest.raises(ValidationError, match="caption: has 33"):
        GenerationRequest(caption=long, seed=1)
