"""Attention of one image's tokens over one another: no mask, no causality, one sample.

On Hopper this is cuDNN's, named rather than left to torch's choice: with heads of 256, flash attention is 2.3
times slower there and the memory-efficient kernel 4 times (one H200, 1024x1024). Elsewhere torch chooses: cuDNN
takes heads that wide on no other generation that torch lets it.

In 8 bits it takes two thirds of the time on Hopper (346 us a block against 505 to 590), at an error of 3.6 %
on random input: a tier of its own. cuDNN offers it through its own front end only, one plan a shape, and takes
one scale for each of its five tensors. None of them is measured. What goes in is under a bound that holds for any
picture (`Gains`), which costs e4m3 little, because it is a floating point format; what comes out is expected to
be an eighth of that at most, and saturates where it is not.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from worker.engine.kernels import Format, Heads, Rows
from worker.engine.tier import HOPPER

PROBABILITY_GAIN = 256.0
"""Of the softmax, whose values are at most one."""
OUTPUT_GAIN = 8.0
"""Of what comes out over what goes in as value: the bound is some tens of times what a value usually is, and a mean
of many rows is smaller still. An expectation, no bound: a row that sees one extreme value alone is cut off."""
PLANS = 64
"""That are kept: a prompt's lengths make up to 17 of one image size, and each costs 60 ms when it is made anew."""
MARGIN = 1.1
"""Over the bounds: the products before are rounded themselves."""


K = TypeVar("K")
V = TypeVar("V")


def attend(heads: Heads) -> Tensor:
    """Rows x (heads x head size)."""
    query, key, value = heads.query, heads.key, heads.value
    if _is_hopper(query.device):
        attended: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, False)[0]  # noqa: SLF001
    else:
        attended = functional.scaled_dot_product_attention(query, key, value)
    return attended[0].transpose(0, 1).flatten(1)


@cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == HOPPER


@dataclass(frozen=True, slots=True)
class Gains:
    """What one block's 8-bit attention multiplies with, all on the device, float32.

    `into` for query, key and value; `undo` the inverse of each, then of the softmax's and the output's;
    `softmax` and `output` theirs; `rows` the output's inverse once for each row, as the next product wants it.
    """

    into: Tensor
    undo: tuple[Tensor, Tensor, Tensor, Tensor]
    softmax: Tensor
    output: Tensor
    rows: Tensor


def gains(query_norm: Tensor, key_norm: Tensor, value_bound: Tensor, rows: int) -> Gains:
    """Gains under which query, key and value do not overflow, whatever the picture.

    A normed head is at most the square root of its size times the norm's largest weight, turned at most the
    square root of two times that; `value_bound` is the most that any value can be.
    """
    size = query_norm.shape[0]
    most = torch.stack(
        (
            query_norm.abs().amax() * math.sqrt(2 * size),
            key_norm.abs().amax() * math.sqrt(2 * size),
            value_bound,
        )
    )
    into = Format.FP8.largest / (MARGIN * most)
    output = (OUTPUT_GAIN * into[2]).reshape(1, 1, 1, 1)
    softmax = torch.full_like(output, PROBABILITY_GAIN)
    query, key, value = ((1.0 / one).reshape(1, 1, 1, 1) for one in into)
    undo = (query, key, value, 1.0 / softmax)
    return Gains(into, undo, softmax, output, (1.0 / output).reshape(1, 1).repeat(rows, 1))


class Recent(Generic[K, V]):
    """What was made for the keys that came by last, `most` of them at the most; whoever was asked for longest ago goes.

    `drop` is told before one goes.
    """

    def __init__(self, most: int, drop: Callable[[], None] = lambda: None) -> None:
        self._most, self._drop = most, drop
        self._made: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._made)

    def get(self, key: K, make: Callable[[], V]) -> V:
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        if len(self._made) == self._most:
            self._drop()
            self._made.popitem(last=False)
        made = self._made[key] = make()
        return made


class SmallAttention:
    """8-bit attention, and the plans that cuDNN has made for the shapes that came by last.

    For one thread and its stream: all plans work in one workspace, one after another. Both branches share it.
    """

    def __init__(self) -> None:
        # A kernel may still be at work for the plan that goes.
        self._plans: Recent[tuple[int, int, int], _Plan] = Recent(PLANS, torch.cuda.synchronize)
        self._handle: Any = None
        self._workspace: Tensor | None = None

    @property
    def workspace_bytes(self) -> int:
        """What the plans take of the device's memory between them; expected by `worker.engine.memory`."""
        return 0 if self._workspace is None else self._workspace.nbytes

    def __call__(self, heads: Heads, given: Gains, rows: int) -> Rows:
        """`rows` x (heads x head size); `heads` may have more rows, filled up with zeros."""
        if heads.query.device.type != "cuda":
            return _plain(heads, given, rows)
        if self._handle is None:
            self._handle = _handle()
        _, count, padded, size = heads.query.shape
        plan = self._plans.get((count, padded, size), lambda: _Plan(heads, self._handle))
        if self._workspace is None or self._workspace.nbytes < plan.workspace_bytes:
            self._workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=heads.query.device)
        return Rows(plan(heads, given, rows, self._workspace), given.rows)


def _handle() -> Any:  # noqa: ANN401 - cuDNN's, opaque
    """On the thread's current stream."""
    cudnn: Any = import_module("cudnn")
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    return handle


def _plain(heads: Heads, given: Gains, rows: int) -> Rows:
    parts = (heads.query, heads.key, heads.value)
    query, key, value = (part[:, :, :rows].float() * undo for part, undo in zip(parts, given.undo[:3], strict=True))
    attended = functional.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)
    gained = (attended * given.output.flatten()).clamp(-Format.FP8.largest, Format.FP8.largest)
    return Rows(gained.to(Format.FP8.dtype), given.rows)


class _Plan:
    """cuDNN's plan for one shape: seconds for the first of a process, then some 60 ms each."""

    def __init__(self, heads: Heads, handle: Any) -> None:  # noqa: ANN401 - cuDNN's, opaque
        cudnn: Any = import_module("cudnn")
        kinds = cudnn.data_type
        self._handle = handle
        graph = cudnn.pygraph(
            io_data_type=kinds.FP8_E4M3,
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=self._handle,
        )
        _, count, padded, size = heads.query.shape
        device = heads.query.device
        one = torch.ones((1, 1, 1, 1), device=device)
        self._length = torch.ones((1, 1, 1, 1), dtype=torch.int32, device=device)
        self._parts = [graph.tensor_like(part) for part in (heads.query, heads.key, heads.value)]
        self._scales = [graph.tensor_like(one) for _ in range(6)]
        self._lengths = [graph.tensor_like(self._length) for _ in range(2)]
        query, key, value = self._parts
        output, _, *largest = graph.sdpa_fp8(
            q=query,
            k=key,
            v=value,
            descale_q=self._scales[0],
            descale_k=self._scales[1],
            descale_v=self._scales[2],
            descale_s=self._scales[3],
            scale_s=self._scales[4],
            scale_o=self._scales[5],
            attn_scale=1 / math.sqrt(size),
            generate_stats=False,
            use_causal_mask=False,
            use_padding_mask=True,
            seq_len_q=self._lengths[0],
            seq_len_kv=self._lengths[1],
        )
        shape, strides = [1, count, padded, size], [padded * count * size, size, count * size, 1]
        output.set_output(True).set_dim(shape).set_stride(strides).set_data_type(kinds.FP8_E4M3)
        for each in largest:
            each.set_output(True).set_dim([1, 1, 1, 1]).set_stride([1, 1, 1, 1]).set_data_type(kinds.FLOAT)
        graph.build([cudnn.heur_mode.A])
        self._graph = graph
        self._output, self._largest = output, largest
        self._unread = [torch.empty_like(one) for _ in largest]
        self.workspace_bytes: int = max(1, graph.get_workspace_size())

    def __call__(self, heads: Heads, given: Gains, rows: int, workspace: Tensor) -> Tensor:
        _, count, padded, size = heads.query.shape
        made = torch.empty((padded, count * size), dtype=Format.FP8.dtype, device=heads.query.device)
        self._length.fill_(rows)
        tensors = dict(zip(self._parts, (heads.query, heads.key, heads.value), strict=True))
        tensors |= dict(zip(self._scales, (*given.undo, given.softmax, given.output), strict=True))
        tensors |= dict.fromkeys(self._lengths, self._length)
        tensors |= dict(zip(self._largest, self._unread, strict=True))
        tensors[self._output] = made.view(1, padded, count, size).transpose(1, 2)
        self._graph.execute(tensors, workspace, handle=self._handle)
        return made[:rows]


def bound_of_values(weight: Tensor) -> float:
    """The most that a value can be for each unit of the largest weight of the norm before it.

    `weight` is out x in; what it multiplies is normed, so the square root of its width long.
    """
    return float(weight.float().norm(dim=1).max()) * math.sqrt(weight.shape[1])
