"""The few operations that a transformer block consists of besides its matrix products and its attention.

`Kernels` is the seam. `plain` says in PyTorch what each of them computes and runs anywhere; `triton` is
the same in hand-written kernels, and tests hold it to `plain`. Each reads a row once and writes it once;
what the next matrix product wants quantised leaves the kernel quantised, so no pass over memory is made
for it. On an H200 the three take 15.5 ms of a 1024x1024 step where a compiler's fusion took 31.

Shapes: `rows` x `width` matrices of one image's tokens (batch is always one: a step is bound by
arithmetic, so a batch of four costs four times one; docs/benchmarks.md). Norms are RMS norms in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor


class Format(Enum):
    """What the next matrix product reads."""

    SAME = "same"  # the activations' own format
    FP8 = "fp8"
    INT8 = "int8"

    @property
    def dtype(self) -> torch.dtype:
        return {Format.FP8: torch.float8_e4m3fn, Format.INT8: torch.int8}[self]

    @property
    def largest(self) -> float:
        """The largest value that the format holds; a row is scaled so that its largest becomes this."""
        return {Format.FP8: 448.0, Format.INT8: 127.0}[self]


ROW_TILE = 128
"""Rows of 8-bit attention come in these: cuDNN's own tile, so it costs no time and few plans are made."""
TINIEST = 1e-12
"""A row of zeros gets this over `largest` as its scale, so that nobody divides by zero."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A matrix quantised row by row: `values[i, j] * scale[i]`. `scale` is float32, rows x 1."""

    values: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class Sums:
    """An integer product not scaled yet: `values[i, j] * rows[i] * columns[j]`.

    Whoever reads it next scales it on the way in; scaling it by itself would cost a pass over memory.
    `values` is int32, `rows` float32 rows x 1, `columns` float32 of `width`.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor


Operand = Tensor | Rows
"""What goes into a matrix product."""
Product = Tensor | Sums
"""What comes out of one."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary tables, float32, rows x half a head. Both halves of a head turn by the same angles.

    Positions of image tokens start at 65,536: in bf16 neighbours would coincide, so this is never cast.
    """

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """Query, key and value of one image, each 1 x heads x rows x head size.

    For 8-bit attention they are e4m3 and rows are filled up to a multiple of ROW_TILE with zeros.
    """

    query: Tensor
    key: Tensor
    value: Tensor


class Kernels(Protocol):
    """`eps` is each norm's own. Vectors (`before`, `after`, weights) are float32 and of the rows' width."""

    name: str

    def quantise(self, x: Tensor, to: Format) -> Operand:
        """`x` row by row in another format."""
        ...

    def norm(self, x: Tensor, before: Tensor, eps: float, to: Format) -> Operand:
        """`norm(x) * before`: the way into the first block's attention."""
        ...

    def join(
        self, x: Tensor, y: Product, after: Tensor, before: Tensor, eps: float, to: Format
    ) -> tuple[Tensor, Operand]:
        """`x' = x + norm(y) * after`, and `norm(x') * before`: out of one half of a block, into the next."""
        ...

    def add(self, x: Tensor, y: Product, after: Tensor, eps: float) -> Tensor:
        """`x + norm(y) * after`: out of the last block."""
        ...

    def swiglu(self, both: Product, to: Format) -> Operand:
        """`silu(gate) * up` of a product that holds them side by side, gate first."""
        ...

    def heads(self, qkv: Product, query: Tensor, key: Tensor, rope: Rope, eps: float) -> Heads:
        """Parts query, key and value (side by side in `qkv`), norms each head of the first two, turns them."""
        ...

    def small_heads(self, qkv: Tensor, query: Tensor, key: Tensor, rope: Rope, eps: float, gain: Tensor) -> Heads:
        """The same in e4m3, each of the three times its `gain` (float32, three of them) before it is cast."""
        ...
