"""What a step has to do, by formula, and where its time goes, by kernel."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from worker.engine.denoise import Branches, Given
from worker.engine.transformer import Shape

GROUPS = {
    "matrix products": ("nvjet", "gemm", "cutlass", "xmma", "gemv", "splitK"),
    "attention": ("sdpa", "flash", "fmha"),
    "norm, gate, residual, quantise": ("join", "norm"),
    "SwiGLU, quantise": ("swiglu",),
    "heads: norm, rotate": ("heads",),
    "quantise alone": ("quantise",),
    "unpacking nf4": ("Dequantize", "dequant"),
}
"""By what the kernels' names hold; the first that fits."""


def step_flops(tokens: int, image_tokens: int, shape: Shape | None = None) -> float:
    """Floating point operations of one step, both branches: products 2mnk, attention 4 x rows^2 x width a block."""
    shape = shape or Shape()
    width, wide = shape.width, shape.intermediate_size
    a_row = 2 * (4 * width * width + 3 * width * wide)
    rows = (tokens, image_tokens)
    return shape.num_layers * sum(n * a_row + 4 * n * n * width for n in rows)


@torch.no_grad()
def groups(branches: Branches, given: Given, steps: int = 2) -> dict[str, float]:
    """Milliseconds of one step by group of kernels, and what fits none."""
    assert given.unconditional is not None
    z = given.latents.to(branches.conditional.dtype)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for step in range(steps):
            branches.conditional.velocity(z, given.conditional, step)
            branches.unconditional.velocity(z, given.unconditional, step)
        torch.cuda.synchronize()
    spent = dict.fromkeys([*GROUPS, "all else"], 0.0)
    for event in seen.key_averages():
        if event.key.startswith("cuda"):
            continue  # a call of the host's
        group = next((name for name, words in GROUPS.items() if any(word in event.key for word in words)), "all else")
        spent[group] += event.device_time_total / steps / 1e3
    return {name: round(ms, 2) for name, ms in spent.items()}
