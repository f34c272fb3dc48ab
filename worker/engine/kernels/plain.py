"""What every kernel computes, in plain PyTorch: the fallback where Triton is missing, and what it is held to.

All of it is float32 inside; results go back to the activations' format where a kernel would write them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from worker.engine.kernels import ROW_TILE, TINIEST, Format, Heads, Operand, Product, Rope, Rows, Sums


class PlainKernels:
    name = "plain"

    def __init__(self, dtype: torch.dtype) -> None:
        """`dtype` is the activations' format: an integer product does not tell."""
        self._dtype = dtype

    def quantise(self, x: Tensor, to: Format) -> Operand:
        return self._written(x.float(), to)

    def norm(self, x: Tensor, before: Tensor, eps: float, to: Format) -> Operand:
        return self._written(_normed(x.float(), eps) * before, to)

    def join(
        self, x: Tensor, y: Product, after: Tensor, before: Tensor, eps: float, to: Format
    ) -> tuple[Tensor, Operand]:
        joined = self.add(x, y, after, eps)
        return joined, self.norm(joined, before, eps, to)

    def add(self, x: Tensor, y: Product, after: Tensor, eps: float) -> Tensor:
        return (x.float() + _normed(_read(y), eps) * after).to(self._dtype)

    def swiglu(self, both: Product, to: Format) -> Operand:
        gate, up = _read(both).chunk(2, dim=-1)
        return self._written(functional.silu(gate) * up, to)

    def heads(self, qkv: Product, query: Tensor, key: Tensor, rope: Rope, eps: float) -> Heads:
        size = query.shape[0]
        values = _read(qkv)
        parts = values.reshape(values.shape[0], 3, -1, size)  # rows x 3 x heads x size
        q = _turned(_normed(parts[:, 0], eps) * query, rope)
        k = _turned(_normed(parts[:, 1], eps) * key, rope)
        return Heads(*(part.to(self._dtype).transpose(0, 1)[None] for part in (q, k, parts[:, 2])))

    def small_heads(self, qkv: Tensor, query: Tensor, key: Tensor, rope: Rope, eps: float, gain: Tensor) -> Heads:
        heads = self.heads(qkv.float(), query, key, rope, eps)
        short = -qkv.shape[0] % ROW_TILE
        return Heads(
            *(
                functional.pad((part.float() * times).clamp(-largest, largest), (0, 0, 0, short)).to(Format.FP8.dtype)
                for part, times in zip((heads.query, heads.key, heads.value), gain, strict=True)
                for largest in (Format.FP8.largest,)
            )
        )

    def _written(self, x: Tensor, to: Format) -> Operand:
        return x.to(self._dtype) if to is Format.SAME else quantised(x, to)


def quantised(x: Tensor, to: Format) -> Rows:
    """`x` (float32) row by row, each scaled so that its largest value just fits."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=TINIEST) / to.largest
    scaled = x * (1.0 / scale)
    if to is Format.INT8:
        scaled = scaled.round()  # half to even
    return Rows(scaled.clamp(-to.largest, to.largest).to(to.dtype), scale)


def _read(product: Product) -> Tensor:
    if isinstance(product, Sums):
        return product.values.float() * product.rows * product.columns
    return product.float()


def _normed(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def _turned(x: Tensor, rope: Rope) -> Tensor:
    """`x` is rows x heads x size."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rope.cos[:, None], rope.sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
