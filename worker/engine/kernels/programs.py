"""Device code: the kernels' Triton programs. One program has one row, or one tile of pixels.

What each computes stands in `plain` and `pixels`, how it is launched in `triton` and `pixels`. A row comes as
two powers of two, MAIN and REST wide. TO is what is written: 0 the activations' own format, 1 FP8, 2 INT8;
SUMS says that a product comes as integers with a scale a row and a column. The language is Triton's, not
Python's: names in capitals are compiled in, and there are no types to annotate.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import triton
import triton.language as tl

ROUNDER = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding and taking it away rounds a float32 below 2**22 to the nearest whole, half to even."""


def _kernel(function: Callable[..., None]) -> Any:
    """Compiled once for all prompt lengths: where an image's rows begin among the scales changes with them."""
    names = signature(function).parameters
    return triton.jit(function, do_not_specialize_on_alignment=[name for name in ("by_row", "scale") if name in names])


@triton.jit
def load(base, width, MAIN: tl.constexpr, REST: tl.constexpr):
    rest = MAIN + tl.arange(0, REST)
    a = tl.load(base + tl.arange(0, MAIN)).to(tl.float32)
    b = tl.load(base + rest, mask=rest < width, other=0).to(tl.float32)
    return a, b


@triton.jit
def store(base, a, b, width, MAIN: tl.constexpr, REST: tl.constexpr):
    rest = MAIN + tl.arange(0, REST)
    tl.store(base + tl.arange(0, MAIN), a.to(base.dtype.element_ty))
    tl.store(base + rest, b.to(base.dtype.element_ty), mask=rest < width)


@triton.jit
def read(
    product, by_row, by_column, row, offset, stride, width, SUMS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr
):
    a, b = load(product + row * stride + offset, width, MAIN, REST)
    if SUMS:
        unit = tl.load(by_row + row)
        column_a, column_b = load(by_column + offset, width, MAIN, REST)
        a = a * unit * column_a
        b = b * unit * column_b
    return a, b


@triton.jit
def over_norm(a, b, width, eps):
    return tl.rsqrt((tl.sum(a * a, axis=0) + tl.sum(b * b, axis=0)) / width + eps)


@triton.jit
def write(a, b, values, scale, row, width, tiniest, largest, TO: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    base = values + row * width
    if TO > 0:
        unit = tl.maximum(tl.maximum(tl.max(tl.abs(a), axis=0), tl.max(tl.abs(b), axis=0)), tiniest) / largest
        inverse = 1.0 / unit
        a = a * inverse
        b = b * inverse
        tl.store(scale + row, unit)
        if TO == 2:
            a = (a + ROUNDER) - ROUNDER
            b = (b + ROUNDER) - ROUNDER
    store(base, a, b, width, MAIN, REST)


@triton.jit
def sum_and_largest(sum_a, largest_a, sum_b, largest_b):
    return sum_a + sum_b, tl.maximum(largest_a, largest_b)


@triton.jit
def write_normed(
    a, b, before, values, scale, row, width, eps, tiniest, largest,
    TO: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Norms a row, weighs it, and writes it.

    A quantised row does not depend on its norm, only its scale does. So its sum of squares and its largest
    value are found in one pass over the threads, which is what these kernels wait for.
    """
    before_a, before_b = load(before, width, MAIN, REST)
    if TO > 0:
        squares_a, largest_a = tl.reduce((a * a, tl.abs(a * before_a)), 0, sum_and_largest)
        squares_b, largest_b = tl.reduce((b * b, tl.abs(b * before_b)), 0, sum_and_largest)
        norm = tl.rsqrt((squares_a + squares_b) / width + eps)
        found = tl.maximum(tl.maximum(largest_a, largest_b), tiniest)
        inverse = largest / found
        tl.store(scale + row, norm * found / largest)
        a = a * before_a * inverse
        b = b * before_b * inverse
        if TO == 2:
            a = (a + ROUNDER) - ROUNDER
            b = (b + ROUNDER) - ROUNDER
    else:
        norm = over_norm(a, b, width, eps)
        a = a * norm * before_a
        b = b * norm * before_b
    store(values + row * width, a, b, width, MAIN, REST)


@_kernel
def quantise(
    x, stride, values, scale, width, tiniest, largest,
    TO: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    a, b = load(x + row * stride, width, MAIN, REST)
    write(a, b, values, scale, row, width, tiniest, largest, TO, MAIN, REST)


@_kernel
def norm(
    x, before, values, scale, width, eps, tiniest, largest,
    TO: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    a, b = load(x + row * width, width, MAIN, REST)
    write_normed(a, b, before, values, scale, row, width, eps, tiniest, largest, TO, MAIN, REST)


@_kernel
def join(
    x, product, by_row, by_column, after, before, joined, values, scale, width, eps, tiniest, largest,
    SUMS: tl.constexpr, GOES_ON: tl.constexpr, TO: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    y_a, y_b = read(product, by_row, by_column, row, 0, width, width, SUMS, MAIN, REST)
    x_a, x_b = load(x + row * width, width, MAIN, REST)
    norm = over_norm(y_a, y_b, width, eps)
    after_a, after_b = load(after, width, MAIN, REST)
    # What is normed next is what is stored: the residual stream's own precision.
    a = (x_a + y_a * norm * after_a).to(joined.dtype.element_ty)
    b = (x_b + y_b * norm * after_b).to(joined.dtype.element_ty)
    store(joined + row * width, a, b, width, MAIN, REST)
    if GOES_ON:
        write_normed(
            a.to(tl.float32), b.to(tl.float32), before, values, scale, row, width, eps, tiniest, largest,
            TO, MAIN, REST,
        )  # fmt: skip


@_kernel
def swiglu(
    product, by_row, by_column, values, scale, width, tiniest, largest,
    SUMS: tl.constexpr, TO: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    gate_a, gate_b = read(product, by_row, by_column, row, 0, 2 * width, width, SUMS, MAIN, REST)
    up_a, up_b = read(product, by_row, by_column, row, width, 2 * width, width, SUMS, MAIN, REST)
    a = gate_a * tl.sigmoid(gate_a) * up_a
    b = gate_b * tl.sigmoid(gate_b) * up_b
    write(a, b, values, scale, row, width, tiniest, largest, TO, MAIN, REST)


@_kernel
def heads(
    product, by_row, by_column, into, query, key, cos, sin, eps,
    COUNT: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, SUMS: tl.constexpr, SMALL: tl.constexpr,
):  # fmt: skip
    # One row: the heads of its query and its key, and, where they have to be scaled, those of its value. SMALL
    # writes FP8, and `by_row` is then what query, key and value are multiplied by.
    row = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, HALF)
    c = tl.load(cos + row * HALF + half)[None, :]
    s = tl.load(sin + row * HALF + half)[None, :]
    query_a, query_b = tl.load(query + half)[None, :], tl.load(query + HALF + half)[None, :]
    key_a, key_b = tl.load(key + half)[None, :], tl.load(key + HALF + half)[None, :]
    base = row * (6 * HALF * COUNT)
    turned: tl.constexpr = (3 if SUMS or SMALL else 2) * COUNT
    for begin in range(0, turned, HEADS):
        head = begin + tl.arange(0, HEADS)
        mask = (head < turned)[:, None]
        column = head[:, None] * (2 * HALF) + half[None, :]
        a = tl.load(product + base + column, mask=mask, other=0).to(tl.float32)
        b = tl.load(product + base + HALF + column, mask=mask, other=0).to(tl.float32)
        if SUMS:
            unit = tl.load(by_row + row)
            a = a * unit * tl.load(by_column + column, mask=mask, other=0.0)
            b = b * unit * tl.load(by_column + HALF + column, mask=mask, other=0.0)
        norm = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF) + eps)[:, None]
        is_query = (head < COUNT)[:, None]
        normed_a = a * norm * tl.where(is_query, query_a, key_a)
        normed_b = b * norm * tl.where(is_query, query_b, key_b)
        turned_a = normed_a * c - normed_b * s
        turned_b = normed_b * c + normed_a * s
        if SUMS or SMALL:
            is_value = (head >= 2 * COUNT)[:, None]
            turned_a = tl.where(is_value, a, turned_a)
            turned_b = tl.where(is_value, b, turned_b)
        if SMALL:
            gain = tl.load(by_row + head // COUNT, mask=head < turned, other=0.0)[:, None]
            turned_a = turned_a * gain
            turned_b = turned_b * gain
        tl.store(into + base + column, turned_a.to(into.dtype.element_ty), mask=mask)
        tl.store(into + base + HALF + column, turned_b.to(into.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pixels"])
def moments(x, means, squares, pixels, CHANNELS: tl.constexpr, SIZE: tl.constexpr, PIXELS: tl.constexpr):
    tile = tl.program_id(0)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    groups: tl.constexpr = CHANNELS // SIZE
    inside = (pixel < pixels)[:, None]
    at = pixel.to(tl.int64)[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    read = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(PIXELS, pixels - tile * PIXELS) * SIZE
    mean = tl.sum(tl.sum(tl.reshape(read, (PIXELS, groups, SIZE)), axis=2), axis=0) / count
    apart = tl.reshape(read, (PIXELS, groups, SIZE)) - mean[None, :, None]
    apart = tl.where(inside[:, :, None], apart, 0.0)
    square = tl.sum(tl.sum(apart * apart, axis=2), axis=0)
    tl.store(means + tile * groups + tl.arange(0, groups), mean)
    tl.store(squares + tile * groups + tl.arange(0, groups), square)


@triton.jit(do_not_specialize=["pixels"])
def apply(x, y, scale, shift, pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, SILU: tl.constexpr):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = (pixel < pixels)[:, None]
    at = pixel.to(tl.int64)[:, None] * CHANNELS + channel
    read = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    made = read * tl.load(scale + channel) + tl.load(shift + channel)
    if SILU:
        made = made * tl.sigmoid(made)
    tl.store(y + at, made.to(y.dtype.element_ty), mask=inside)
