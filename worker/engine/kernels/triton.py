"""The block's kernels in Triton. What each computes stands in `plain`; tests hold the two together.

Written for the true sizes (rows of 4,608 and 12,288, heads of 256) and right for any: heads whose size is no power of
two, which Triton cannot lay out, are left to the plain twin. Nothing is tuned at run time, so a new prompt length or
image size builds nothing; the first process on a machine builds them in a few seconds, later ones read them from the
cache (`worker.engine.caches`).
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from worker.engine.kernels import ROW_TILE, TINIEST, Format, Heads, Operand, Product, Rope, Rows, Sums, programs
from worker.engine.kernels.plain import PlainKernels

HEADS = 4
"""Heads that a program of `heads` turns at once, of its one row: 4 x 256 values."""
_CODES = {Format.SAME: 0, Format.FP8: 1, Format.INT8: 2}


WARPS = {
    "quantise": {False: 8, True: 8},
    "norm": {False: 4, True: 16},
    "join": {False: 4, True: 16},
    "swiglu": {False: 16, True: 8},
}
"""Warps of one program, which has one row; whether it quantises. Measured on an H200 at the true sizes."""
HEADS_WARPS = 1


class TritonKernels:
    name = "triton"

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._plain = PlainKernels(dtype)

    def quantise(self, x: Tensor, to: Format) -> Operand:
        rows, width = x.shape
        values, scale = self._new(x, rows, width, to)
        parts = _spread("quantise", width, to)
        programs.quantise[(rows,)](x, x.stride(0), values, scale, width, TINIEST, to.largest, TO=_CODES[to], **parts)
        return Rows(values, scale)

    def norm(self, x: Tensor, before: Tensor, eps: float, to: Format) -> Operand:
        rows, width = x.shape
        values, scale = self._new(x, rows, width, to)
        parts = _spread("norm", width, to)
        programs.norm[(rows,)](x, before, values, scale, width, eps, TINIEST, _largest(to), TO=_CODES[to], **parts)
        return _operand(values, scale, to)

    def join(
        self, x: Tensor, y: Product, after: Tensor, before: Tensor, eps: float, to: Format
    ) -> tuple[Tensor, Operand]:
        rows, width = x.shape
        joined = torch.empty_like(x)
        values, scale = self._new(x, rows, width, to)
        parts = _spread("join", width, to)
        programs.join[(rows,)](
            x, *_parts(y), after, before, joined, values, scale, width, eps, TINIEST, _largest(to),
            SUMS=isinstance(y, Sums), GOES_ON=True, TO=_CODES[to], **parts,
        )  # fmt: skip
        return joined, _operand(values, scale, to)

    def add(self, x: Tensor, y: Product, after: Tensor, eps: float) -> Tensor:
        rows, width = x.shape
        joined = torch.empty_like(x)
        parts = _spread("join", width, Format.SAME)
        programs.join[(rows,)](
            x, *_parts(y), after, after, joined, joined, joined, width, eps, TINIEST, 1.0,
            SUMS=isinstance(y, Sums), GOES_ON=False, TO=0, **parts,
        )  # fmt: skip
        return joined

    def swiglu(self, both: Product, to: Format) -> Operand:
        product = _parts(both)
        rows, width = product[0].shape[0], product[0].shape[1] // 2
        values, scale = self._new(product[0], rows, width, to)
        parts = _spread("swiglu", width, to)
        programs.swiglu[(rows,)](
            *product, values, scale, width, TINIEST, _largest(to),
            SUMS=isinstance(both, Sums), TO=_CODES[to], **parts,
        )  # fmt: skip
        return _operand(values, scale, to)

    def heads(self, qkv: Product, query: Tensor, key: Tensor, rope: Rope, eps: float) -> Heads:
        if not _lays_out(query.shape[0]):
            return self._plain.heads(qkv, query, key, rope, eps)
        product = _parts(qkv)
        rows, size = product[0].shape[0], query.shape[0]
        count = product[0].shape[1] // (3 * size)
        # A bf16 product is turned where it lies; an integer one needs another place for what it becomes.
        into = torch.empty_like(product[0], dtype=self._dtype) if isinstance(qkv, Sums) else product[0]
        programs.heads[(rows,)](
            *product, into, query, key, rope.cos, rope.sin, eps,
            COUNT=count, HALF=size // 2, HEADS=HEADS, SUMS=isinstance(qkv, Sums), SMALL=False, num_warps=HEADS_WARPS,
        )  # fmt: skip
        parts = into.view(1, rows, 3, count, size).permute(2, 0, 3, 1, 4)
        return Heads(parts[0], parts[1], parts[2])

    def small_heads(self, qkv: Tensor, query: Tensor, key: Tensor, rope: Rope, eps: float, gain: Tensor) -> Heads:
        if not _lays_out(query.shape[0]):
            return self._plain.small_heads(qkv, query, key, rope, eps, gain)
        rows, size = qkv.shape[0], query.shape[0]
        count = qkv.shape[1] // (3 * size)
        padded = rows + -rows % ROW_TILE
        into = self._small(qkv, padded)
        # What fills up is masked, and still multiplied by nought: it must not hold a NaN.
        into[rows:].zero_()
        programs.heads[(rows,)](
            qkv, gain, qkv, into, query, key, rope.cos, rope.sin, eps,
            COUNT=count, HALF=size // 2, HEADS=HEADS, SUMS=False, SMALL=True, num_warps=HEADS_WARPS,
        )  # fmt: skip
        parts = into.view(1, padded, 3, count, size).permute(2, 0, 3, 1, 4)
        return Heads(parts[0], parts[1], parts[2])

    def _small(self, like: Tensor, rows: int) -> Tensor:
        return torch.empty((rows, like.shape[1]), dtype=Format.FP8.dtype, device=like.device)

    def _new(self, like: Tensor, rows: int, width: int, to: Format) -> tuple[Tensor, Tensor]:
        dtype = self._dtype if to is Format.SAME else to.dtype
        values = torch.empty((rows, width), dtype=dtype, device=like.device)
        if to is Format.SAME:
            return values, values  # never written: a pointer is wanted all the same
        return values, torch.empty((rows, 1), dtype=torch.float32, device=like.device)


def _lays_out(size: int) -> bool:
    """Whether half a head is as many values as one of Triton's ranges can have: a power of two."""
    return size % 2 == 0 and (size // 2).bit_count() == 1


def _operand(values: Tensor, scale: Tensor, to: Format) -> Operand:
    return values if to is Format.SAME else Rows(values, scale)


def _largest(to: Format) -> float:
    return 1.0 if to is Format.SAME else to.largest


def _parts(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(product, Sums):
        return product.values, product.rows, product.columns
    return product, product, product


def _spread(kernel: str, width: int, to: Format) -> dict[str, int]:
    """A row as two powers of two: 4,608 is 4,096 and 512, 12,288 is 8,192 and 4,096.

    One power of two above each would leave almost half of the lanes idle, and these kernels are bound by
    instructions before they are bound by memory.
    """
    main = 1 << (width.bit_length() - 1)
    rest = max(16, triton.next_power_of_2(width - main) if width > main else 0)
    return {"MAIN": main, "REST": rest, "num_warps": WARPS[kernel][to is not Format.SAME]}
