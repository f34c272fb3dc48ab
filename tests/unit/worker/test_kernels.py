"""The Triton programs compute what their plain twins say, in Triton's interpreter.

The interpreter's own cast to FP8 is wrong for some values (Triton 3.6), so what a program would cast is taken
as float32 and cast by torch. No test compares the twins on a GPU: there the bench's errors and PSNR are what shows
a kernel that is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.engine.kernels import ROW_TILE, Format, Heads, Kernels, Operand, Product, Rope, Rows, Sums
from worker.engine.kernels.pixels import group_norm, plain_group_norm
from worker.engine.kernels.plain import PlainKernels, quantised
from worker.engine.kernels.triton import TritonKernels

EPS = 1e-5
FP8_STEP = 1 / 8
"""The widest gap between neighbours in e4m3, as a part of the value; more below its normal numbers, see `agree`."""

few = settings(max_examples=8, deadline=None)
shapes = st.tuples(st.integers(1, 5), st.sampled_from([16, 24, 48, 72]))
formats = st.sampled_from(list(Format))
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
seeds = st.integers(0, 2**16)


@dataclass(frozen=True)
class Twins:
    plain: Kernels
    triton: Kernels


class Uncast(TritonKernels):
    """Keeps what it scaled for FP8 in float32."""

    def _new(self, like: Tensor, rows: int, width: int, to: Format) -> tuple[Tensor, Tensor]:
        values, scale = super()._new(like, rows, width, to)
        return (values.float() if to is Format.FP8 else values), scale

    def _small(self, like: Tensor, rows: int) -> Tensor:
        return super()._small(like, rows).float()


def twins(dtype: torch.dtype) -> Twins:
    return Twins(PlainKernels(dtype), Uncast(dtype))


def normal(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product(seed: int, rows: int, width: int, dtype: torch.dtype, *, sums: bool) -> Product:
    if not sums:
        return normal(seed, rows, width).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-40, 40, (rows, width), dtype=torch.int32, generator=generator)
    return Sums(values, 0.001 + torch.rand(rows, 1, generator=generator), torch.rand(width, generator=generator))


def read(operand: Operand) -> Tensor:
    """In float32, by way of FP8 where that is what it is for."""
    if not isinstance(operand, Rows):
        return operand.float()
    values = operand.values if operand.values.dtype is torch.int8 else operand.values.to(torch.float8_e4m3fn)
    return values.float() * operand.scale


def agree(ours: Operand, theirs: Operand, to: Format, dtype: torch.dtype) -> None:
    assert isinstance(ours, Rows) == isinstance(theirs, Rows) == (to is not Format.SAME)
    rounding = 2e-6 if dtype is torch.float32 else 2**-6
    if isinstance(ours, Rows) and isinstance(theirs, Rows):
        torch.testing.assert_close(ours.scale, theirs.scale, rtol=max(rounding, 2**-6), atol=0)
        # A value on the border between two of the format's may fall to either side, and few do.
        step = {Format.FP8: FP8_STEP, Format.INT8: 0.0}[to]
        one = {Format.FP8: 0.0, Format.INT8: 1.01 * float(theirs.scale.max())}[to]
        torch.testing.assert_close(read(ours), read(theirs), rtol=step + rounding, atol=one + 1e-9)
    else:
        torch.testing.assert_close(read(ours), read(theirs), rtol=rounding, atol=rounding)


@few
@given(shapes, formats, dtypes, seeds)
def test_norm(shape: tuple[int, int], to: Format, dtype: torch.dtype, seed: int) -> None:
    pair, x, before = twins(dtype), normal(seed, *shape).to(dtype), normal(seed + 1, shape[1])
    agree(pair.triton.norm(x, before, EPS, to), pair.plain.norm(x, before, EPS, to), to, dtype)


@few
@given(shapes, st.sampled_from([Format.FP8, Format.INT8]), dtypes, seeds)
def test_quantise(shape: tuple[int, int], to: Format, dtype: torch.dtype, seed: int) -> None:
    pair, x = twins(dtype), normal(seed, *shape).to(dtype)
    agree(pair.triton.quantise(x, to), pair.plain.quantise(x, to), to, dtype)


@few
@given(shapes, formats, dtypes, seeds, st.booleans())
def test_join_and_add(shape: tuple[int, int], to: Format, dtype: torch.dtype, seed: int, sums: bool) -> None:
    pair, x = twins(dtype), normal(seed, *shape).to(dtype)
    y = product(seed + 1, *shape, dtype, sums=sums)
    after, before = normal(seed + 2, shape[1]), normal(seed + 3, shape[1])
    ours, theirs = (each.join(x, y, after, before, EPS, to) for each in (pair.triton, pair.plain))
    agree(ours[0], theirs[0], Format.SAME, dtype)
    agree(ours[1], theirs[1], to, dtype)
    agree(pair.triton.add(x, y, after, EPS), theirs[0], Format.SAME, dtype)


@few
@given(shapes, formats, dtypes, seeds, st.booleans())
def test_swiglu(shape: tuple[int, int], to: Format, dtype: torch.dtype, seed: int, sums: bool) -> None:
    pair, both = twins(dtype), product(seed, shape[0], 2 * shape[1], dtype, sums=sums)
    agree(pair.triton.swiglu(both, to), pair.plain.swiglu(both, to), to, dtype)


@few
@given(st.integers(1, 4), st.sampled_from([(1, 16), (3, 16), (5, 8), (2, 24), (1, 80)]), dtypes, seeds, st.booleans())
def test_heads(rows: int, heads: tuple[int, int], dtype: torch.dtype, seed: int, sums: bool) -> None:
    count, size = heads
    pair = twins(dtype)
    query, key = normal(seed + 1, size), normal(seed + 2, size)
    angles = normal(seed + 3, rows, size // 2)
    made: list[Heads] = []
    for each in (pair.triton, pair.plain):
        # A product is turned where it lies, so each gets one of its own.
        qkv = product(seed, rows, 3 * count * size, dtype, sums=sums)
        made.append(each.heads(qkv, query, key, Rope(angles.cos(), angles.sin()), EPS))
    for part in ("query", "key", "value"):
        ours, theirs = (getattr(one, part) for one in made)
        assert ours.shape == (1, count, rows, size)
        agree(ours, theirs, Format.SAME, dtype)


@few
@given(st.integers(1, 4), st.sampled_from([(1, 16), (3, 16), (2, 24), (1, 80)]), dtypes, seeds)
def test_small_heads(rows: int, heads: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    count, size = heads
    pair = twins(dtype)
    query, key = normal(seed + 1, size), normal(seed + 2, size)
    angles, gain = normal(seed + 3, rows, size // 2), torch.tensor([1.0, 2.0, 4.0])
    qkv = normal(seed, rows, 3 * count * size).to(dtype)
    rope = Rope(angles.cos(), angles.sin())
    ours, theirs = (each.small_heads(qkv, query, key, rope, EPS, gain) for each in (pair.triton, pair.plain))
    for part in ("query", "key", "value"):
        mine, plain = (getattr(one, part).to(torch.float8_e4m3fn).float() for one in (ours, theirs))
        assert mine.shape == (1, count, ROW_TILE, size)
        torch.testing.assert_close(mine, plain, rtol=FP8_STEP + 2**-6, atol=2**-9)
        assert not mine[:, :, rows:].any()


@few
@given(st.sampled_from([Format.FP8, Format.INT8]), seeds)
def test_a_quantised_row_uses_its_formats_whole_range_and_is_near(to: Format, seed: int) -> None:
    x = normal(seed, 4, 48)
    rows = quantised(x, to)
    assert rows.values.float().abs().amax(dim=1).tolist() == [to.largest] * 4
    step = {Format.FP8: 2**-4, Format.INT8: 0.5 / 127}[to]
    assert float((read(rows) - x).abs().max() / x.abs().max()) <= step


def test_a_row_of_zeros_stays_one() -> None:
    for kernels in (PlainKernels(torch.float32), TritonKernels(torch.float32)):
        for to in (Format.FP8, Format.INT8):
            assert not read(kernels.quantise(torch.zeros(2, 48), to)).any()


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("channels", "groups", "height", "width"), [(128, 32, 13, 17), (8, 4, 5, 3), (64, 4, 40, 9), (48, 4, 5, 7)]
)
def test_group_norm(channels: int, groups: int, height: int, width: int, silu: bool) -> None:
    x = (5 + normal(1, 1, channels, height, width)).contiguous(memory_format=torch.channels_last)
    norm = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    weight, bias = normal(2, channels), normal(3, channels)
    ours = group_norm(x, weight, bias, groups, 1e-6, silu=silu)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    norm(ours, plain_group_norm(x, weight, bias, groups, 1e-6, silu=silu))
