"""Does an image look like the one that the weights draw instead of what they refuse?

They have no checker: they draw a flat grey picture that carries "Image blocked by safety filter". What is
found here is a suspicion, from tones alone: how much of the picture is one neutral grey, neither black nor
white. The words are not read, since they cover a few percent at most and small ones come out garbled.

No real sample was at hand when this was written. The bounds below are wide where a flat area comes out of a
VAE (some levels of noise, a breath of colour) and narrow where pictures differ from it; whoever sees real
ones sets the share anew (LETTERPRESS_WORKER_BLOCKED_SHARE).
"""

from __future__ import annotations

from itertools import accumulate

from PIL.Image import Image, Resampling

SHARE = 0.8
"""Of the pixels, that must be the same grey; what remains is for the words and a frame."""
TONE_TOLERANCE = 8
"""Levels of luminance (of 255) that count as the same grey, both ways."""
COLOUR_TOLERANCE = 6
"""Levels of Cb and Cr (of 255) that count as no colour, both ways."""
DARKEST, LIGHTEST = 40, 215
"""Luminance of a grey; what lies outside is a black or a white page."""
SAMPLED_SIDE = 256
"""Pixels a side that are looked at: single ones, since averages of noise are grey."""


def suspicion(image: Image, share: float = SHARE) -> str:
    """Why `image` (RGB) looks blocked; empty if it does not, or if `share` is 0. Takes about 2 ms."""
    if not share:
        return ""
    sides = (min(image.width, SAMPLED_SIDE), min(image.height, SAMPLED_SIDE))
    sample = image.resize(sides, Resampling.NEAREST).convert("YCbCr")
    tones = sample.histogram()
    luminance, blue, red = tones[:256], tones[256:512], tones[512:]
    pixels = sample.width * sample.height
    grey, found = _most_of_one_tone(luminance)
    neutral = min(sum(colour[128 - COLOUR_TOLERANCE : 129 + COLOUR_TOLERANCE]) for colour in (blue, red))
    if not DARKEST <= grey <= LIGHTEST or min(found, neutral) < share * pixels:
        return ""
    return (
        f"{found / pixels:.0%} of the picture is one grey (luminance {grey} of 255), "
        "like the picture that the weights draw instead of what they refuse"
    )


def _most_of_one_tone(histogram: list[int]) -> tuple[int, int]:
    """The tone that most pixels are within the tolerance of, by its peak, and how many they are."""
    below = [0, *accumulate(histogram)]

    def around(tone: int) -> int:
        return below[min(tone + TONE_TOLERANCE + 1, 256)] - below[max(tone - TONE_TOLERANCE, 0)]

    middle = max(range(256), key=around)
    window = range(max(middle - TONE_TOLERANCE, 0), min(middle + TONE_TOLERANCE, 255) + 1)
    return max(window, key=histogram.__getitem__), around(middle)
