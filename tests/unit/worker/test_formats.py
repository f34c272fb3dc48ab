"""The files that images are delivered as."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from worker import formats, picture
from worker.contract import MAX_PROMPT_CHARS, GenerationRequest, ImageFormat, Metadata
from worker.engine import Description

TEXT = {"Comment": "noise, not a picture", "Software": "letterpress 0.1.0", "Source": "tiny für 狐, seed 7, steps 2"}
ABOUT = formats.About(TEXT, settings={"seed": 7, "steps": 2}, shown={"prompt": "a fox für 狐"})


@pytest.fixture(scope="module")
def drawn() -> Image.Image:
    """Something with slopes and edges, as pictures have."""
    y, x = np.mgrid[0:256, 0:256]
    squares = (x // 32 + y // 32) % 2 * 128
    pixels = np.stack([x // 2, y // 2, (x + y) // 4], axis=-1) + squares[..., None]
    return Image.fromarray(pixels.astype(np.uint8))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def error(one: Image.Image, other: Image.Image) -> float:
    """Root mean square, of 255."""
    difference = np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)
    return float(np.sqrt((difference**2).mean()))


@pytest.mark.parametrize("form", list(ImageFormat))
def test_each_format_is_what_it_says_and_repeats_byte_by_byte(drawn: Image.Image, form: ImageFormat) -> None:
    data = formats.encode(drawn, ABOUT, form)
    image = opened(data)
    assert (image.format, image.size, image.mode) == (form.upper(), (256, 256), "RGB")
    assert Image.MIME[str(image.format)] == form.media_type
    assert data == formats.encode(drawn, ABOUT, form)
    assert error(image, drawn) < 4
    assert (error(image, drawn) == 0) == (form is ImageFormat.PNG)


@pytest.mark.parametrize("form", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_what_a_file_says_of_itself_is_kept_where_png_has_no_place_for_it(
    drawn: Image.Image, form: ImageFormat
) -> None:
    exif = opened(formats.encode(drawn, ABOUT, form)).getexif()
    assert exif[formats.SOFTWARE] == TEXT["Software"]
    said = exif[formats.DESCRIPTION].encode("latin-1").decode()
    assert said == f"{TEXT['Comment']}; {TEXT['Source']}"


def test_png_keeps_it_as_text(drawn: Image.Image) -> None:
    image = opened(formats.encode(drawn, ABOUT))
    assert {keyword: image.info[keyword] for keyword in TEXT} == TEXT


CAPTION = {
    "high_level_description": "Füchse, 狐",
    "compositional_deconstruction": {"background": "night", "elements": [{"type": "obj", "desc": "a fox"}]},
}


def record(data: bytes) -> dict[str, object]:
    """What a program reads in a file; nothing if it says nothing."""
    image = opened(data)
    if image.format == "PNG":
        said = image.info.get(formats.RECORD, "{}")
    else:
        comment = image.getexif().get_ifd(formats.EXIF_FOLDER).get(formats.USER_COMMENT, formats.ASCII + b"{}")
        assert comment.startswith(formats.ASCII)
        said = comment.removeprefix(formats.ASCII).decode()
    found: dict[str, object] = json.loads(said)
    return found


def made(drawn: Image.Image, metadata: Metadata = Metadata.ALL, **fields: object) -> bytes:
    made_by = Description(model="some/weights", engine="fast", device="cpu", tier="nf4")
    request = GenerationRequest.model_validate({"width": 256, "height": 256, "seed": 7, **fields})
    return picture.encode(drawn, request, made_by, metadata=metadata).data


@pytest.mark.parametrize("form", list(ImageFormat))
def test_a_file_holds_the_request_that_made_it(drawn: Image.Image, form: ImageFormat) -> None:
    said = record(made(drawn, prompt="a fox für 狐", format=form))
    assert str(said.pop("software")).startswith("letterpress ")
    assert said == {
        "prompt": "a fox für 狐",
        "width": 256,
        "height": 256,
        "seed": 7,
        "preset": "V4_DEFAULT_20",
        "model": "some/weights",
        "tier": "nf4",
        "engine": "fast",
    }


@pytest.mark.parametrize("form", list(ImageFormat))
def test_a_caption_stays_a_caption_and_own_sampler_settings_are_there(drawn: Image.Image, form: ImageFormat) -> None:
    said = record(made(drawn, caption=CAPTION, steps=2, guidance=[5.0, 2.5], mu=0.5, format=form))
    assert said["caption"] == CAPTION
    assert "preset" not in said
    assert (said["steps"], said["guidance"], said["mu"]) == (2, [5.0, 2.5], 0.5)


@pytest.mark.parametrize("form", list(ImageFormat))
def test_what_a_picture_shows_can_be_left_out_and_all_of_it_too(drawn: Image.Image, form: ImageFormat) -> None:
    private = made(drawn, Metadata.SETTINGS, prompt="very-private", format=form)
    assert b"very-private" not in private
    assert record(private)["seed"] == 7
    silent = made(drawn, Metadata.NONE, prompt="very-private", format=form)
    assert record(silent) == {}
    assert b"letterpress" not in silent
    pixels = {opened(data).tobytes() for data in (private, silent, made(drawn, prompt="very-private", format=form))}
    assert len(pixels) == 1


@pytest.mark.parametrize("quality", [None, 100])
def test_a_jpeg_of_nothing_but_noise_is_larger_than_its_optimizer_has_room_for_and_is_made(quality: int | None) -> None:
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    data = formats.encode(noise, ABOUT, ImageFormat.JPEG, quality)
    assert len(data) > 256 * 256 * (1 if quality is None else 2)
    assert opened(data).getexif()[formats.SOFTWARE] == TEXT["Software"]
    assert error(opened(data), noise) < 20
    assert data == formats.encode(noise, ABOUT, ImageFormat.JPEG, quality)


def test_a_prompt_too_long_for_a_jpegs_metadata_is_left_out_of_it(drawn: Image.Image) -> None:
    long = "狐" * MAX_PROMPT_CHARS
    said = record(made(drawn, prompt=long, format="jpeg"))
    assert "prompt" not in said
    assert said["seed"] == 7
    assert record(made(drawn, prompt=long))["prompt"] == long


@pytest.mark.parametrize("form", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_less_quality_is_fewer_bytes_and_another_picture(drawn: Image.Image, form: ImageFormat) -> None:
    sizes = [len(formats.encode(drawn, ABOUT, form, quality)) for quality in (1, 50, formats.DEFAULT_QUALITY, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert formats.encode(drawn, ABOUT, form) == formats.encode(drawn, ABOUT, form, formats.DEFAULT_QUALITY)


def test_a_request_that_says_nothing_of_it_gets_the_png_it_always_got(drawn: Image.Image) -> None:
    made_by = Description(model="tiny", engine="reference", device="cpu", notice="noise")
    old = GenerationRequest.model_validate_json('{"prompt": "a fox", "seed": 1}')
    encoded = picture.encode(drawn, old, made_by)
    assert encoded.data == formats.encode(drawn, picture.about(old, made_by), ImageFormat.PNG)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quality": 90}, "quality: a PNG is never lossy"),
        ({"format": "jpeg", "quality": 0}, "greater than or equal to 1"),
        ({"format": "webp", "quality": 101}, "less than or equal to 100"),
        ({"format": "gif"}, "'png', 'jpeg' or 'webp'"),
    ],
)
def test_a_format_or_quality_that_cannot_be_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GenerationRequest.model_validate({"prompt": "a fox", "seed": 1, **fields})
