"""A block's matrix products, one class a tier. Weights are out x in; activations rows x in."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from worker.contract import Tier
from worker.engine import LoadError
from worker.engine.checkpoint import Packed, Stored, expanded
from worker.engine.kernels import Format, Operand, Product, Rows, Sums
from worker.engine.kernels.plain import quantised

TAKES = {
    Tier.EXACT: Format.SAME,
    Tier.NF4: Format.SAME,
    Tier.FP8: Format.FP8,
    Tier.FP8_ATTENTION: Format.FP8,
    Tier.INT8: Format.INT8,
}
"""The format in which a tier's products want their activations."""


class Linear(Protocol):
    """`x @ weight.T`, no bias."""

    def __call__(self, x: Operand) -> Product: ...

    @property
    def bytes(self) -> int:
        """What its weights take of the device's memory."""
        ...


def linear(stored: Stored, tier: Tier, dtype: torch.dtype) -> Linear:
    """The product that `tier` makes with `stored`; weights of another format are converted here, once.

    LoadError if the tier keeps weights packed and these are not.
    """
    match tier, stored:
        case Tier.EXACT, _:
            return Dense(expanded(stored, dtype))
        case Tier.FP8 | Tier.FP8_ATTENTION, Rows():
            return Fp8(stored, dtype)  # the maker's own FP8 values
        case Tier.FP8 | Tier.FP8_ATTENTION, _:
            return Fp8(quantised(expanded(stored, dtype).float(), Format.FP8), dtype)
        case Tier.INT8, _:
            return Int8(quantised(expanded(stored, dtype).float(), Format.INT8))
        case Tier.NF4, Packed():
            return Nf4(stored, dtype)
        case _:
            raise LoadError(
                f"tier {tier} keeps nf4 weights as they are stored, and these are not nf4; serve an nf4 repository, "
                f"or take another tier ({', '.join(other for other in Tier if other is not tier)})"
            )


class Dense:
    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Operand) -> Product:
        return functional.linear(_whole(x), self._weight)

    @property
    def bytes(self) -> int:
        return self._weight.nbytes


class Nf4:
    """Expands its weights for every product: a little slower, for a quarter of the memory."""

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        self._packed = packed
        self._dtype = dtype

    def __call__(self, x: Operand) -> Product:
        return functional.linear(_whole(x), self._packed.expand(self._dtype))

    @property
    def bytes(self) -> int:
        return self._packed.bytes


class Fp8:
    """cuBLAS, one scale a row of the activations and one a row of the weights; sums in float32."""

    def __init__(self, weight: Rows, dtype: torch.dtype) -> None:
        self._weight = weight
        self._columns = weight.scale.t()
        self._dtype = dtype

    def __call__(self, x: Operand) -> Product:
        rows = _quantised(x)
        if rows.values.device.type != "cuda":
            return ((rows.values.float() @ self._weight.values.float().t()) * rows.scale * self._columns).to(
                self._dtype
            )
        return torch._scaled_mm(  # noqa: SLF001 - torch's one FP8 product; torchao calls it too
            rows.values,
            self._weight.values.t(),
            scale_a=rows.scale,
            scale_b=self._columns,
            out_dtype=self._dtype,
            use_fast_accum=True,
        )

    @property
    def bytes(self) -> int:
        return self._weight.values.nbytes + self._weight.scale.nbytes


class Int8:
    """cuBLAS' integer product; whoever reads the sums scales them."""

    def __init__(self, weight: Rows) -> None:
        self._weight = weight
        self._columns = weight.scale.flatten()

    def __call__(self, x: Operand) -> Product:
        rows = _quantised(x)
        sums = torch._int_mm(rows.values, self._weight.values.t())  # noqa: SLF001 - likewise
        return Sums(sums, rows.scale, self._columns)

    @property
    def bytes(self) -> int:
        return self._weight.values.nbytes + self._weight.scale.nbytes


def _whole(x: Operand) -> Tensor:
    assert isinstance(x, Tensor)  # noqa: S101 - by TAKES; tells the type checker
    return x


def _quantised(x: Operand) -> Rows:
    assert isinstance(x, Rows)  # noqa: S101 - likewise
    return x
