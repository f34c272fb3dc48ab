"""The grey picture that the weights draw for what they refuse, as it is described; nobody here has seen one."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from worker import blocked

WORDS = "Image blocked by safety filter"
greys = st.integers(blocked.DARKEST + blocked.TONE_TOLERANCE, blocked.LIGHTEST - blocked.TONE_TOLERANCE)


def described(width: int, height: int, grey: int, ink: int, size: int) -> Image.Image:
    image = Image.new("RGB", (width, height), (grey, grey, grey))
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text((width / 2, height / 2), WORDS, (ink, ink, ink), font, anchor="mm")
    return image


def decoded(image: Image.Image, noise: float) -> Image.Image:
    """As a VAE would leave it: softened, and with `noise` levels of noise."""
    grain = Image.merge("RGB", [Image.effect_noise(image.size, noise)] * 3)
    return ImageChops.add(image.filter(ImageFilter.GaussianBlur(0.8)), grain, offset=-128)


@settings(max_examples=40)
@given(
    sides=st.tuples(st.integers(16, 64), st.integers(16, 64)),
    grey=greys,
    ink=st.sampled_from([0, 255]),
    size=st.integers(10, 60),
    noise=st.floats(0, 3),
)
@example(sides=(16, 16), grey=69, ink=0, size=10, noise=0.0)
def test_a_grey_picture_with_the_words_is_suspected(
    sides: tuple[int, int], grey: int, ink: int, size: int, noise: float
) -> None:
    image = decoded(described(sides[0] * 16, sides[1] * 16, grey, ink, min(size, sides[0])), noise)
    said = blocked.suspicion(image)
    assert "one grey" in said
    assert abs(int(said.split("luminance ")[1].split(" ")[0]) - grey) <= blocked.TONE_TOLERANCE + 1


def fox(size: int = 256) -> Image.Image:
    """Orange on green: shapes and no texture, as flat as an illustration gets."""
    image = Image.new("RGB", (size, size), (40, 110, 50))
    ImageDraw.Draw(image).polygon([(20, 20), (size - 20, 20), (size // 2, size - 20)], (220, 110, 30))
    return image


def noise(seed: int = 1, size: int = 256) -> Image.Image:
    return Image.frombytes("RGB", (size, size), random.Random(seed).randbytes(size * size * 3))


@pytest.mark.parametrize(
    "image",
    [
        noise(),
        Image.effect_noise((256, 256), 40).convert("RGB"),
        Image.linear_gradient("L").convert("RGB"),
        Image.radial_gradient("L").convert("RGB"),
        fox(),
        fox().convert("L").convert("RGB"),
        Image.new("RGB", (512, 256), "white"),
        Image.new("RGB", (512, 256), "black"),
        Image.new("RGB", (512, 256), (90, 120, 160)),
    ],
    ids=["noise", "grey noise", "gradient", "vignette", "fox", "grey fox", "white", "black", "flat blue"],
)
def test_other_pictures_are_not(image: Image.Image) -> None:
    assert blocked.suspicion(image) == ""


@given(grey=greys, covered=st.floats(0, 0.4))
def test_the_share_is_where_it_turns(grey: int, covered: float) -> None:
    image = Image.new("RGB", (200, 200), (grey, grey, grey))
    image.paste((255, 255, 255), (0, 0, 200, round(200 * covered)))
    share = 1 - round(200 * covered) / 200
    assert blocked.suspicion(image, share - 0.01)
    assert not blocked.suspicion(image, share + 0.01)


def test_nothing_is_suspected_when_it_is_turned_off() -> None:
    assert blocked.suspicion(described(256, 256, 128, 255, 12), share=0) == ""
