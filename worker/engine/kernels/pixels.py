"""Group norm and SiLU in one, for the image decoder, with the channels of a pixel side by side in memory.

torch's own group norm wants the channels apart and copies every picture to and fro: 95 of the 128 ms of a
1024x1024 decoding on an H200. Two kernels and a little arithmetic between them read the picture twice and
write it once. The statistics are joined from blocks of pixels in a fixed order, so the same picture gives
the same bytes.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn import functional

from worker.engine.kernels import programs

TILE = 8192
"""Values that one program holds: as many pixels of all channels as that makes."""


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool) -> Tensor:
    """`x` is 1 x channels x height x width, channels last in memory; so is what comes back. Statistics in float32.

    Channels or groups that are no power of two are the plain twin's: Triton cannot lay them out.
    """
    _, channels, height, width = x.shape
    if channels.bit_count() != 1 or groups.bit_count() != 1:
        return plain_group_norm(x, weight, bias, groups, eps, silu=silu).contiguous(memory_format=torch.channels_last)
    pixels = height * width
    a_tile = max(1, TILE // channels)
    tiles = triton.cdiv(pixels, a_tile)
    means = torch.empty((tiles, groups), dtype=torch.float32, device=x.device)
    squares = torch.empty_like(means)
    size = channels // groups
    programs.moments[(tiles,)](x, means, squares, pixels, CHANNELS=channels, SIZE=size, PIXELS=a_tile, num_warps=8)
    counts = torch.full((tiles, 1), float(a_tile * size), device=x.device)
    counts[-1] = float((pixels - (tiles - 1) * a_tile) * size)
    total = float(pixels * size)
    mean = (means * counts).sum(dim=0) / total
    spread = (squares.sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)) / total
    scale = weight.float() * torch.rsqrt(spread + eps).repeat_interleave(size)
    shift = bias.float() - mean.repeat_interleave(size) * scale
    y = torch.empty_like(x)
    programs.apply[(tiles,)](x, y, scale, shift, pixels, CHANNELS=channels, PIXELS=a_tile, SILU=silu, num_warps=8)
    return y


def plain_group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool) -> Tensor:
    """The same in PyTorch."""
    normed = functional.group_norm(x, groups, weight, bias, eps)
    return functional.silu(normed) if silu else normed
