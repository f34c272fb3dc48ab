"""Tensors of one component of a repository, from its files straight to where they are used.

Reads three layouts and tells them apart by the tensors themselves: plain (bf16, float32), bitsandbytes nf4
(packed values with their scales beside them, `…quant_state.bitsandbytes__nf4`), and the maker's FP8
(`X.weight` in e4m3 with `X.weight_scale`, one a row, query, key and value in one). Names are diffusers';
the maker's own (`attention.qkv`, `attention.o`) are known too. The FP8 layout was written from its public
description and never tried on the real files, which are gated.

One tensor at a time is read, moved and, where asked, expanded on the device: a host needs no memory for the
model, and nf4 moves a quarter of the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worker.engine import LoadError
from worker.engine.kernels import Rows

PACKED_STATE = ".quant_state.bitsandbytes__"
FP8_SCALE = "_scale"
TOGETHER = {("attention.to_q", "attention.to_k", "attention.to_v"): "attention.qkv"}
"""What the maker's layout keeps in one tensor, stacked by rows."""
OTHERWISE = {"attention.to_out.0": "attention.o"}


@dataclass(frozen=True, slots=True)
class Packed:
    """An nf4 matrix: two values a byte, `absmax` (float32) for each `block` of them; `shape` is out x in."""

    values: Tensor
    absmax: Tensor
    shape: tuple[int, int]
    block: int

    def expand(self, dtype: torch.dtype) -> Tensor:
        """The values that bitsandbytes would multiply with, bit for bit."""
        import bitsandbytes  # noqa: F401, PLC0415 - registers the operator; seconds, so only where it is used

        expanded: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.values, self.absmax, self.block, "nf4", list(self.shape), dtype
        )
        return expanded

    @property
    def bytes(self) -> int:
        return self.values.nbytes + self.absmax.nbytes


Stored = Tensor | Packed | Rows
"""A matrix as its file holds it."""
_KINDS = (".weight", ".bias")


class Checkpoint:
    """The tensors below `folder`, by name; to be used within `with`. LoadError says what is wrong with the files."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._asked: set[str] = set()

    def __enter__(self) -> Self:
        paths = sorted(self._folder.glob("*.safetensors"))
        if not paths:
            raise LoadError(f"{self._folder} holds no *.safetensors; fetch the repository again, or check its layout")
        for path in paths:
            try:
                opened = self._stack.enter_context(safe_open(path, framework="pt", device=str(self._device)))
            except (SafetensorError, OSError) as error:
                self._stack.close()
                raise LoadError(f"{path} cannot be read ({error}); fetch the repository again") from error
            self._files |= dict.fromkeys(opened.keys(), opened)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    @property
    def packed(self) -> bool:
        """Whether any of it is nf4."""
        return any(PACKED_STATE in name for name in self._files)

    def tensor(self, name: str, dtype: torch.dtype, sizes: tuple[int, ...] | None = None) -> Tensor:
        """One tensor, expanded if it is packed, in `dtype` on the device; LoadError if it has not these `sizes`."""
        stored = self.stored(name)
        self._measure(name, stored, sizes)
        return expanded(stored, dtype)

    def matrix(self, *names: str, sizes: tuple[int, int] | None = None) -> Stored:
        """The weights of the linear layers `names`, stacked by rows, as stored; LoadError if all of it together has
        not these `sizes`.

        Names are diffusers', without `.weight`; what another layout keeps together is found there.
        """
        found = self._matrix(names)
        self._measure(" with ".join(names), found, sizes)
        return found

    def refuse_left_over(self, prefix: str) -> None:
        """LoadError if a weight below `prefix` was never read: its config describes another model."""
        weights = {f"{name.rpartition(kind)[0]}{kind}" for name in self for kind in _KINDS if kind in name}
        left = sorted(name for name in weights if name.startswith(prefix) and name not in self._asked)
        if left:
            raise LoadError(
                f"{self._folder} holds {len(left)} weights that its config.json has no place for ({left[0]}, …); "
                "the two are not of one model: fetch the repository again"
            )

    def _measure(self, name: str, stored: Stored, sizes: tuple[int, ...] | None) -> None:
        if sizes is not None and (held := size(stored)) != sizes:
            raise LoadError(
                f"{self._folder}: {name} is {_by(held)} and its config.json makes it {_by(sizes)}; "
                "the two are not of one model: fetch the repository again"
            )

    def _matrix(self, names: Sequence[str]) -> Stored:
        prefix, last = _parted(names)
        for own, other in [*TOGETHER.items(), *(((one,), other) for one, other in OTHERWISE.items())]:
            if last == own and f"{prefix}{other}.weight" in self:
                return self.stored(f"{prefix}{other}.weight")
        return _stacked([self.stored(f"{name}.weight") for name in names])

    def stored(self, name: str) -> Stored:
        self._asked.add(name)
        value = self._read(name)
        scale = f"{name}{FP8_SCALE}"
        if value.dtype is torch.float8_e4m3fn:
            if scale not in self:
                raise LoadError(f"{self._folder}: {name} is FP8 and {scale} is missing; fetch the repository again")
            return Rows(value, self._read(scale).float().reshape(-1, 1).expand(value.shape[0], 1).contiguous())
        state = next(
            (f"{name}{PACKED_STATE}{kind}" for kind in ("nf4", "fp4") if f"{name}{PACKED_STATE}{kind}" in self), None
        )
        if state is not None:
            return self._unpacked(name, state, value)
        if not value.is_floating_point():
            raise LoadError(f"{self._folder}: {name} is {value.dtype} in a packing that this worker does not read")
        return value

    def _unpacked(self, name: str, state: str, values: Tensor) -> Packed:
        described = json.loads(bytes(self._read(state).cpu().numpy()))
        if described["quant_type"] != "nf4":
            raise LoadError(f"{self._folder}: {name} is packed as {described['quant_type']}; this worker reads nf4")
        absmax = self._read(f"{name}.absmax")
        if f"{name}.nested_absmax" in self:
            # The scales are quantised themselves: 8 bits each, through a table, a scale for every 256 of them.
            table, coarse = self._read(f"{name}.nested_quant_map"), self._read(f"{name}.nested_absmax")
            fine = table[absmax.long()].float()
            block = int(described["nested_blocksize"])
            absmax = fine * coarse.float().repeat_interleave(block)[: fine.numel()] + float(described["nested_offset"])
        rows, columns = described["shape"]
        return Packed(values.reshape(-1, 1), absmax.float(), (rows, columns), int(described["blocksize"]))

    def _read(self, name: str) -> Tensor:
        if name not in self:
            raise LoadError(
                f"{self._folder} has no tensor {name}: its layout is not one that this worker knows "
                "(diffusers', bitsandbytes nf4, the maker's FP8)"
            )
        try:
            tensor: Tensor = self._files[name].get_tensor(name)
        except SafetensorError as error:
            raise LoadError(f"{self._folder}: {name} cannot be read ({error}); fetch the repository again") from error
        return tensor


def expanded(stored: Stored, dtype: torch.dtype) -> Tensor:
    """A matrix in `dtype`, whatever holds it."""
    match stored:
        case Packed():
            return stored.expand(dtype)
        case Rows(values, scale):
            return (values.float() * scale).to(dtype)
        case _:
            return stored.to(dtype)


def size(stored: Stored) -> tuple[int, ...]:
    """Out x in, whatever holds it."""
    match stored:
        case Packed(shape=shape):
            return shape
        case Rows(values, _):
            return tuple(values.shape)
        case _:
            return tuple(stored.shape)


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _stacked(parts: Sequence[Stored]) -> Stored:
    if len(parts) == 1:
        return parts[0]
    if len({type(part) for part in parts}) > 1:
        dtype = next((part.dtype for part in parts if isinstance(part, Tensor)), torch.bfloat16)
        return torch.cat([expanded(part, dtype) for part in parts])
    if tensors := [part for part in parts if isinstance(part, Tensor)]:
        return torch.cat(tensors)
    if rows := [part for part in parts if isinstance(part, Rows)]:
        return Rows(torch.cat([part.values for part in rows]), torch.cat([part.scale for part in rows]))
    packed = [part for part in parts if isinstance(part, Packed)]
    first = packed[0]
    # A block of values may not run across two of them.
    if any(part.shape[0] * part.shape[1] % part.block or part.block != first.block for part in packed):
        raise LoadError("nf4 matrices of a block cannot be joined: their sizes are not whole blocks of values")
    return Packed(
        torch.cat([part.values for part in packed]),
        torch.cat([part.absmax for part in packed]),
        (sum(part.shape[0] for part in packed), first.shape[1]),
        first.block,
    )


def _parted(names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """`layers.3.attention.to_q`, … -> `layers.3.` and what comes after it."""
    head, number, *_ = [*names[0].split("."), ""]
    prefix = f"{head}.{number}." if number.isdigit() else ""
    return prefix, tuple(name.removeprefix(prefix) for name in names)
