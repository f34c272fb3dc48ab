"""What a model will take of a GPU's memory, worked out from its configuration before anything is loaded.

Pure arithmetic: sizes in, bytes out. What the arithmetic cannot know (the driver's context, libraries'
workspaces, an allocator's gaps) is `RESERVE`. Figures beside constants were measured on an H200 with random
weights of the true sizes. One prompt of 25 steps at 1024x1024 peaked at 50.6 GiB (exact), 34.4 (fp8) and 18.2 (nf4).
The fullest moment, 2048x2048 with the tables of two requests of 100 steps, peaked at 55.6 (exact), 39.4 (fp8) and
39.5 (fp8-attention); the sums, RESERVE apart, are 0.2 to 0.3 more (docs/benchmarks.md).

All of it is the path with Triton's kernels. Their plain twins hold float32 copies of what they read, and the decoder
keeps its norms and activations apart; how much more that takes on a GPU was not measured and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from worker.contract import MAX_ASPECT, MAX_PIXELS, MAX_PROMPT_TOKENS, MAX_SIDE, MIN_SIDE, SIDE_STEP, Tier
from worker.engine import LoadError
from worker.engine.described import described, part, sizes
from worker.engine.tier import Gpu, why_not
from worker.engine.transformer import Shape

GIB = 2**30
BF16 = 2
FLOAT32 = 4
PACKED = 0.5 + FLOAT32 / 64
"""Bytes of one nf4 value: half a byte, and a float32 scale for every 64."""
PER_VALUE = {Tier.EXACT: BF16, Tier.FP8: 1, Tier.FP8_ATTENTION: 1, Tier.INT8: 1, Tier.NF4: PACKED}
"""Bytes that one weight of a block's products takes; the row scales of 8-bit ones are a ten-thousandth."""
DECODE_PER_PIXEL = 1537
"""Bytes that decoding takes for each pixel of the image: 1.5 GiB at 1024x1024, 6.0 at 2048x2048 (measured)."""
DECODER = 0.1 * GIB
RESERVE = 1.5 * GIB
"""The CUDA context (0.5 GiB), cuBLAS' and cuDNN's workspaces, and what an allocator cannot fill."""
ATTENTION_WORKSPACE = 0.125 * GIB
"""What 8-bit attention's plans share (`worker.engine.attention`), and more than they were seen to take: 256 bytes at
1024x1024, and a peak 0.05 GiB over the one of `fp8` at 2048x2048 (one H200, cuDNN 9.19)."""
TOKEN_PIXELS = 16 * 16
STEPS = 100
"""As many as can be asked for: what is worked out beforehand for each step has to fit too."""
REQUESTS = 2
"""Whose tables are held: the one's that is made, until its picture is there, and the next one's."""


@dataclass(frozen=True, slots=True)
class TextShape:
    """Sizes of the text encoder's language model, from its config.json; the defaults are Qwen3-VL-8B's."""

    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151936

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From `folder`/config.json; LoadError if that cannot be read."""
        return sizes(cls, part(described(folder), "text_config", folder), folder)

    @property
    def products(self) -> int:
        """Weights in linear layers."""
        heads = self.head_dim * (2 * self.num_attention_heads + 2 * self.num_key_value_heads)
        return self.num_hidden_layers * self.hidden_size * (heads + 3 * self.intermediate_size)

    @property
    def table(self) -> int:
        """Weights of the embedding, which is never packed."""
        return self.vocab_size * self.hidden_size


@dataclass(frozen=True, slots=True)
class Text:
    """How the text encoder is kept: `packed` in nf4 (if it comes so), `parked` in the host's memory between uses."""

    packed: bool
    parked: bool

    def __str__(self) -> str:
        return f"text encoder in {'nf4' if self.packed else 'bf16'}{', parked between uses' if self.parked else ''}"


@dataclass(frozen=True, slots=True)
class Model:
    """What is asked to be loaded; whether the repository's transformers and its text encoder come packed."""

    transformer: Shape
    text: TextShape
    nf4: bool
    text_nf4: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits: how the text encoder is kept, and the largest image, in pixels, where `free` bytes are to be had."""

    model: Model
    tier: Tier
    text: Text
    max_pixels: int
    free: float

    def parts(self, pixels: int) -> dict[str, float]:
        """Bytes by part for an image of `pixels`, for people."""
        return parts(self.model, self.tier, self.text, pixels)

    def why_not(self, width: int, height: int) -> str | None:
        """Why an image of this size does not fit, with the numbers and the nearest size that does; None if it does."""
        if width * height <= self.max_pixels:
            return None
        smaller = nearest(width, height, self.max_pixels)
        said = f"width, height: {width}x{height} {_needs(self.parts(width * height), self.free)}"
        fits = f"{smaller[0]}x{smaller[1]} fits, and so does" if smaller else "What fits is"
        return f"{said}; in tier {self.tier} on this GPU. {fits} any size of up to {self.max_pixels} pixels"


def plan(model: Model, tier: Tier, free: float, wanted_pixels: int, gpu: Gpu | None = None) -> Plan:
    """How to load `model` in `tier` on a device with `free` bytes, so that images of `wanted_pixels` can be made.

    The text encoder is kept as fast as fits. LoadError if nothing fits: with the sizes of the parts, the
    images that would fit, and the tiers that would, of those that `gpu` (None: any) can run.
    """
    if tier is Tier.NF4 and not model.nf4:
        others = ", ".join(_others(model, tier, gpu))
        raise LoadError(
            f"tier {tier} keeps nf4 weights as they are stored, and these are not nf4; take one of {others}"
        )
    ways = _ways(model, tier)
    for text in ways:
        if (most := largest(model, tier, text, free)) >= wanted_pixels:
            return Plan(model, tier, text, most, free)
    smallest = min(ways, key=lambda text: sum(parts(model, tier, text, wanted_pixels).values()))
    raise LoadError(_refusal(model, tier, smallest, free, wanted_pixels, gpu))


def least(tier: Tier, pixels: int) -> float:
    """Bytes without which no repository of Ideogram 4 makes an image of `pixels` in `tier`, packed or not."""
    model = Model(Shape(), TextShape(), nf4=True, text_nf4=True)
    return min(sum(parts(model, tier, text, pixels).values()) for text in _ways(model, tier))


def parts(model: Model, tier: Tier, text: Text, pixels: int) -> dict[str, float]:
    """Bytes by part, for the moment that needs most, while an image of `pixels` is made."""
    shape = model.transformer
    encoder = _encoder(model.text, text)
    features = BF16 * MAX_PROMPT_TOKENS * shape.llm_features_dim * 2
    drawing = max(_denoising(shape, tier, pixels), DECODE_PER_PIXEL * pixels)
    found = {
        "two transformers": 2 * _transformer(shape, tier),
        "image decoder": DECODER,
        "context and workspaces": RESERVE + (ATTENTION_WORKSPACE if tier is Tier.FP8_ATTENTION else 0),
        "what two requests' steps share": REQUESTS * _prepared(shape, tier, pixels),
    }
    if text.parked:
        # Never both at once: a prompt is encoded between two images.
        return found | {"text encoder or image, whichever is more": max(encoder + features, drawing)}
    return found | {"text encoder": encoder, "the next prompt": features, "making the image": drawing}


def largest(model: Model, tier: Tier, text: Text, free: float) -> int:
    """The most pixels that an image may have, 0 if not even the smallest fits."""
    sizes = range(MIN_SIDE * MIN_SIDE, MAX_PIXELS + 1, TOKEN_PIXELS)
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if sum(parts(model, tier, text, sizes[middle]).values()) <= free:
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else 0


def nearest(width: int, height: int, most: int) -> tuple[int, int] | None:
    """The largest size of at most `most` pixels in the shape of `width` x `height`, as near as the sides' steps
    allow; None if a side would be too short."""
    by = math.sqrt(most / (width * height))
    sides = [int(by * side) // SIDE_STEP * SIDE_STEP for side in (width, height)]
    longest = int(MAX_ASPECT * min(sides)) // SIDE_STEP * SIDE_STEP
    return None if min(sides) < MIN_SIDE else (min(sides[0], longest), min(sides[1], longest))


def _ways(model: Model, tier: Tier) -> Sequence[Text]:
    """From the fastest to the smallest. A tier that keeps its weights packed keeps the encoder so too."""
    if not model.text_nf4:
        return [Text(packed=False, parked=False), Text(packed=False, parked=True)]
    tight = [Text(packed=True, parked=False), Text(packed=True, parked=True)]
    return tight if tier is Tier.NF4 else [Text(packed=False, parked=False), *tight]


def _transformer(shape: Shape, tier: Tier) -> float:
    width = shape.width
    products = shape.num_layers * (4 * width * width + 3 * width * shape.intermediate_size)
    around = width * (shape.in_channels * 2 + shape.llm_features_dim + 2 * width + 2 * shape.adaln_dim)
    modulation = shape.num_layers * 4 * width * (shape.adaln_dim + 1)
    norms = shape.num_layers * 4 * width + shape.llm_features_dim
    return products * PER_VALUE[tier] + (around + modulation) * BF16 + norms * FLOAT32


def _encoder(shape: TextShape, text: Text) -> float:
    return shape.products * (PACKED if text.packed else BF16) + shape.table * BF16


def _denoising(shape: Shape, tier: Tier, pixels: int) -> float:
    """The most that a step holds at once, which is in the feed-forward: the residual before and after, both halves
    of the SwiGLU and what becomes of them."""
    tokens = pixels // TOKEN_PIXELS + MAX_PROMPT_TOKENS
    product = FLOAT32 if tier is Tier.INT8 else BF16
    operand = BF16 if tier in {Tier.EXACT, Tier.NF4} else 1
    a_token = shape.width * (3 * BF16 + operand) + shape.intermediate_size * (2 * product + operand)
    expanded = BF16 * 2 * shape.width * shape.intermediate_size if tier is Tier.NF4 else 0
    return tokens * a_token + expanded


def _prepared(shape: Shape, tier: Tier, pixels: int) -> float:
    """What is worked out for one request before its first step and kept until its picture is there: of both branches
    the modulation of every step and the rotary tables, the projected text, the noise."""
    image = pixels // TOKEN_PIXELS
    rows = MAX_PROMPT_TOKENS + 2 * image
    modulation = 2 * STEPS * (4 * shape.num_layers + 1) * shape.width * BF16
    text = MAX_PROMPT_TOKENS * shape.width * BF16
    gains = rows * shape.num_layers * FLOAT32 if tier is Tier.FP8_ATTENTION else 0
    return modulation + text + rows * shape.attention_head_dim * FLOAT32 + gains + image * shape.in_channels * FLOAT32


def _others(model: Model, tier: Tier, gpu: Gpu | None) -> list[Tier]:
    """The tiers that could be taken instead, memory apart."""
    ours = [other for other in Tier if other is not tier and (other is not Tier.NF4 or model.nf4)]
    return [other for other in ours if why_not(other, gpu) is None]


def _refusal(model: Model, tier: Tier, text: Text, free: float, wanted: int, gpu: Gpu | None) -> str:
    needed = _needs(parts(model, tier, text, wanted), free)
    lines = [f"tier {tier} does not fit: an image of {_square(wanted)} {needed}, with the {text}"]
    if (most := max((largest(model, tier, way, free) for way in _ways(model, tier)), default=0)) > 0:
        lines.append(f"with {tier} it can make images of up to {_square(most)} in area: ask for smaller warm sizes")
    fitting = [
        f"{other} (needs {sum(parts(model, other, way, wanted).values()) / GIB:.1f} GiB)"
        for other in _others(model, tier, gpu)
        if (way := next((way for way in _ways(model, other) if largest(model, other, way, free) >= wanted), None))
    ]
    lines.append(f"what fits: tier {', '.join(fitting)}" if fitting else "no tier fits: take a GPU with more memory")
    return "; ".join(lines)


def _needs(found: dict[str, float], free: float) -> str:
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in found.items())
    total = f"needs {sum(found.values()) / GIB:.1f} GiB of GPU memory and {free / GIB:.1f} are free"
    return f"{total} ({listed})"


def _square(pixels: int) -> str:
    """An area as the square nearest below it."""
    side = min(int(pixels**0.5) // SIDE_STEP * SIDE_STEP, MAX_SIDE)
    return f"{side}x{side}"
