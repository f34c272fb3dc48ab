"""Quality tiers: in which number format the transformers' blocks multiply, and what a GPU must be for it.

`exact` changes no number that the weights hold. The others are lossy in the products' inputs alone and are
never on unless they are asked for. Everything outside the blocks (projections, time, final layer) and the
residual stream stay in bf16 in every tier. What a tier does to *pictures* nobody here has seen: the weights
are gated, and random ones can show error and speed, not quality.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.contract import Tier


@dataclass(frozen=True, slots=True)
class Gpu:
    """What of a GPU decides which tiers it can run. `capability` is CUDA's, e.g. (9, 0) for Hopper."""

    name: str
    capability: tuple[int, int]


FP8_FROM = (8, 9)
"""Ada. Before it there are no FP8 tensor cores, and an A100 asked for FP8 would be slower than in bf16."""
HOPPER = (9, 0)
BF16_FROM = (8, 0)
"""fp16 gives NaN in these weights, so a GPU without bf16 cannot serve them at all."""


def why_not(tier: Tier, gpu: Gpu | None) -> str | None:
    """Why `gpu` (None: a CPU) cannot run `tier`, with what to take instead; None if it can."""
    if gpu is None:
        # The plain kernels compute every tier anywhere; slowly, which is what tests want.
        return None
    if gpu.capability < BF16_FROM:
        return f"{gpu.name} has no bfloat16, which these weights need; take an Ampere GPU or newer"
    if tier in {Tier.FP8, Tier.FP8_ATTENTION} and gpu.capability < FP8_FROM:
        return f"{gpu.name} has no FP8 tensor cores; take tier {Tier.INT8} or {Tier.EXACT}, or an Ada or Hopper GPU"
    if tier is Tier.FP8_ATTENTION and gpu.capability != HOPPER:
        return f"{gpu.name} is no Hopper GPU, and 8-bit attention was written for those; take tier {Tier.FP8}"
    return None
