"""One Ideogram 4 transformer on the fast path: the mathematics of `Ideogram4Transformer2DModel`, batch one.

What differs is only what is computed when: no padding and no mask (a prompt's positions do not depend on its
padding), the text projection, the rotary tables and the modulation of every step once a request instead of
once a step, query, key and value in one product and both halves of the SwiGLU in another. Times, shapes and
names below are the model's: a step's time runs from 0 (noise) to 1 (data), one image token is 16x16 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from worker.contract import Tier
from worker.engine import LoadError
from worker.engine.attention import Gains, SmallAttention, attend, bound_of_values, gains
from worker.engine.checkpoint import Checkpoint, expanded
from worker.engine.described import described, sizes
from worker.engine.kernels import Format, Kernels, Operand, Product, Rope, Sums
from worker.engine.linear import TAKES, Linear, linear

IMAGE_POSITION = 65_536
"""Where the positions of image tokens start, far from those of text."""
AXES = 3
"""Of a position: time, height and width."""
TIME_SCALE = 1e4
TEXT_NORM_EPS = 1e-6
FINAL_NORM_EPS = 1e-6
HEAD_NORM_EPS = 1e-5
TEXT_ROWS = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a transformer, from its config.json; the defaults are Ideogram 4's own."""

    in_channels: int = 128
    num_layers: int = 34
    attention_head_dim: int = 256
    num_attention_heads: int = 18
    intermediate_size: int = 12288
    adaln_dim: int = 512
    llm_features_dim: int = 53248
    rope_theta: float = 5_000_000
    mrope_section: tuple[int, ...] = (24, 20, 20)
    norm_eps: float = 1e-5

    @property
    def width(self) -> int:
        return self.attention_head_dim * self.num_attention_heads

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From `folder`/config.json; LoadError if that cannot be read."""
        shape = sizes(cls, described(folder), folder)
        if len(shape.mrope_section) != AXES:
            raise LoadError(
                f"{folder}/config.json: mrope_section is {list(shape.mrope_section)}, and a position has {AXES} axes; "
                "fetch the repository again"
            )
        return shape


@dataclass(frozen=True, slots=True)
class Layer:
    qkv: Linear
    out: Linear
    up: Linear
    down: Linear
    query_norm: Tensor
    key_norm: Tensor
    value_bound: float


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a request's steps share. `text` is text tokens x width, or None for the unconditional branch.

    `blocks` is what each step's time makes of each block, layers x steps x 2 (attention, feed-forward) x 2
    (scale, gate) x width, and `final` of the last layer, steps x width; both in the model's dtype.
    """

    text: Tensor | None
    rope: Rope
    blocks: Tensor
    final: Tensor
    gains: tuple[Gains, ...] = ()
    """One a block, for 8-bit attention."""


class Transformer:
    """One branch's weights on their device, and one forward pass over them."""

    def __init__(
        self,
        shape: Shape,
        checkpoint: Checkpoint,
        tier: Tier,
        kernels: Kernels,
        dtype: torch.dtype,
        small: SmallAttention | None = None,
    ) -> None:
        """`small`: 8-bit attention, for the tier that has it."""
        self.shape = shape
        self.dtype = dtype
        self._kernels = kernels
        self._takes: Format = TAKES[tier]
        self.small = small

        width, inner, latent, time = shape.width, shape.intermediate_size, shape.in_channels, shape.adaln_dim

        def whole(name: str, *sizes: int) -> Tensor:
            return checkpoint.tensor(name, dtype, sizes)

        def exact(name: str, size: int) -> Tensor:
            return checkpoint.tensor(name, torch.float32, (size,))

        def affine(name: str, into: int, out_of: int) -> tuple[Tensor, Tensor]:
            return whole(f"{name}.weight", into, out_of), whole(f"{name}.bias", into)

        def product(*names: str, into: int, out_of: int) -> Linear:
            return linear(checkpoint.matrix(*names, sizes=(into, out_of)), tier, dtype)

        def heads(name: str) -> tuple[str, ...]:
            return tuple(f"{name}.attention.{part}" for part in ("to_q", "to_k", "to_v"))

        def value_bound(name: str) -> float:
            if self.small is None:
                return 0.0
            weights = expanded(checkpoint.matrix(*heads(name)), torch.bfloat16)
            return bound_of_values(weights[2 * width :])

        self._input = affine("input_proj", width, latent)
        self._text_norm = exact("llm_cond_norm.weight", shape.llm_features_dim)
        self._text = affine("llm_cond_proj", width, shape.llm_features_dim)
        self._time_in = affine("t_embedding.mlp_in", width, width)
        self._time_out = affine("t_embedding.mlp_out", width, width)
        self._adaln = affine("adaln_proj", time, width)
        self._indicator = whole("embed_image_indicator.weight", 2, width)
        self._final_adaln = affine("final_layer.adaln_modulation", width, time)
        self._final = affine("final_layer.linear", latent, width)
        names = [f"layers.{number}" for number in range(shape.num_layers)]
        self._layers = [
            Layer(
                qkv=product(*heads(name), into=3 * width, out_of=width),
                out=product(f"{name}.attention.to_out.0", into=width, out_of=width),
                up=product(f"{name}.feed_forward.w1", f"{name}.feed_forward.w3", into=2 * inner, out_of=width),
                down=product(f"{name}.feed_forward.w2", into=width, out_of=inner),
                query_norm=exact(f"{name}.attention.norm_q.weight", shape.attention_head_dim),
                key_norm=exact(f"{name}.attention.norm_k.weight", shape.attention_head_dim),
                value_bound=value_bound(name),
            )
            for name in names
        ]
        self._modulations = [affine(f"{name}.adaln_modulation", 4 * width, time) for name in names]
        # Layers x 2 (attention, feed-forward) x width.
        self._before = _table(exact, names, ("attention_norm1", "ffn_norm1"), width)
        self._after = _table(exact, names, ("attention_norm2", "ffn_norm2"), width)
        checkpoint.refuse_left_over("layers.")

    @property
    def block_bytes(self) -> int:
        """What the blocks' products take of the device's memory."""
        return sum(part.bytes for layer in self._layers for part in (layer.qkv, layer.out, layer.up, layer.down))

    def condition(self, features: Tensor | None, grid: tuple[int, int], times: Sequence[float]) -> Conditioning:
        """What all steps of one request share.

        `features`: text tokens x `llm_features_dim`, or None. `grid`: image tokens high and wide. `times`: each
        step's, in [0, 1].
        """
        tokens = 0 if features is None else features.shape[0]
        blocks, final = self._modulation(times)
        return Conditioning(
            None if features is None else self._projected(features),
            rope(self.shape, tokens, grid, self._indicator.device),
            blocks,
            final,
            self._gains(blocks, tokens + grid[0] * grid[1]) if self.small is not None else (),
        )

    def velocity(self, latents: Tensor, given: Conditioning, step: int) -> Tensor:
        """The velocity at `latents` (image tokens x channels, the model's dtype) in step `step`, 0-based; likewise."""
        kernels, eps, to = self._kernels, self.shape.norm_eps, self._takes
        # Each norm's own weight times what this step's time makes of it.
        scale, gate = given.blocks[:, step].float().unbind(dim=2)
        before, after = (1 + scale) * self._before, gate.tanh() * self._after
        x = functional.linear(latents, *self._input) + self._indicator[1]
        tokens = 0
        if given.text is not None:
            x, tokens = torch.cat((given.text, x)), given.text.shape[0]
        operand = kernels.norm(x, before[0, 0], eps, to)
        last = len(self._layers) - 1
        for number, layer in enumerate(self._layers):
            seen = layer.out(self._attended(layer.qkv(operand), layer, given, number))
            x, operand = kernels.join(x, seen, after[number, 0], before[number, 1], eps, to)
            made = layer.down(kernels.swiglu(layer.up(operand), to))
            if number < last:
                x, operand = kernels.join(x, made, after[number, 1], before[number + 1, 0], eps, to)
            else:
                # Only the image's rows are asked for from here on.
                x = kernels.add(x[tokens:], _from(made, tokens), after[number, 1], eps)
        normed = functional.layer_norm(x, (self.shape.width,), eps=FINAL_NORM_EPS) * (1 + given.final[step].float())
        return functional.linear(normed.to(self.dtype), *self._final)

    def _attended(self, qkv: Product, layer: Layer, given: Conditioning, number: int) -> Operand:
        norms = (layer.query_norm, layer.key_norm, given.rope, HEAD_NORM_EPS)
        if self.small is not None and isinstance(qkv, Tensor):
            small = self._kernels.small_heads(qkv, *norms, given.gains[number].into)
            return self.small(small, given.gains[number], qkv.shape[0])
        attended = attend(self._kernels.heads(qkv, *norms))
        return attended if self._takes is Format.SAME else self._kernels.quantise(attended, self._takes)

    def _gains(self, blocks: Tensor, rows: int) -> tuple[Gains, ...]:
        # The most that any step makes of the norm before each block's attention.
        scales = (1 + blocks[:, :, 0, 0].float()).abs().amax(dim=1) * self._before[:, 0].abs()
        return tuple(
            gains(layer.query_norm, layer.key_norm, layer.value_bound * most, rows)
            for layer, most in zip(self._layers, scales.amax(dim=1), strict=True)
        )

    def _projected(self, features: Tensor) -> Tensor:
        """A few rows at a time: at 53,248 values a token, float32 copies of a long prompt would take gigabytes."""
        return torch.cat([self._projected_rows(rows) for rows in torch.split(features, TEXT_ROWS)])

    def _projected_rows(self, features: Tensor) -> Tensor:
        x = features.to(self.dtype).float()
        x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + TEXT_NORM_EPS) * self._text_norm
        return functional.linear(x.to(self.dtype), *self._text) + self._indicator[0]

    def _modulation(self, times: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Steps are rows of one product here, where the pipeline makes one product a step."""
        # The pipeline hands the time over in the model's dtype; that rounding is part of its numbers.
        at = torch.tensor(times, dtype=torch.float32, device=self._indicator.device).to(self.dtype)
        waves = _waves(at.float(), self.shape.width).to(self.dtype)
        embedded = functional.linear(functional.silu(functional.linear(waves, *self._time_in)), *self._time_out)
        conditioning = functional.silu(functional.linear(embedded, *self._adaln))
        blocks = torch.stack([functional.linear(conditioning, *modulation) for modulation in self._modulations])
        final = functional.linear(functional.silu(conditioning), *self._final_adaln)
        return blocks.reshape(*blocks.shape[:2], 2, 2, self.shape.width), final


def _from(product: Product, row: int) -> Product:
    if isinstance(product, Sums):
        return Sums(product.values[row:], product.rows[row:], product.columns)
    return product[row:]


def _table(read: Callable[[str, int], Tensor], layers: Sequence[str], norms: Sequence[str], width: int) -> Tensor:
    return torch.stack([torch.stack([read(f"{layer}.{norm}.weight", width) for norm in norms]) for layer in layers])


def rope(shape: Shape, text_tokens: int, grid: tuple[int, int], device: torch.device) -> Rope:
    """The angles of `text_tokens` rows of text and then those of the image, row by row.

    A head's frequencies are shared out between the axes time, height and width in turn; text counts the same
    along all three.
    """
    high, wide = grid
    text = torch.arange(text_tokens, device=device)[:, None].expand(-1, 3)
    image = torch.stack(
        (
            torch.zeros(high * wide, dtype=torch.long, device=device),
            torch.arange(high, device=device).repeat_interleave(wide),
            torch.arange(wide, device=device).repeat(high),
        ),
        dim=1,
    )
    positions = torch.cat((text, image + IMAGE_POSITION)).float()
    size = shape.attention_head_dim
    frequencies = 1.0 / (shape.rope_theta ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size))
    axis = torch.zeros(size // 2, dtype=torch.long, device=device)
    for number in (1, 2):
        axis[number : shape.mrope_section[number] * 3 : 3] = number
    angles = positions[:, axis] * frequencies
    return Rope(angles.cos().contiguous(), angles.sin().contiguous())


def _waves(times: Tensor, width: int) -> Tensor:
    """Sines and cosines of a time in [0, 1], as the model embeds it: steps x width."""
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=times.device) * -(math.log(TIME_SCALE) / (half - 1))
    )
    angles = (TIME_SCALE * times)[:, None] * frequencies
    waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
    return functional.pad(waves, (0, width % 2))
