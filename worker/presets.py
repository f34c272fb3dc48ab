"""From a request to the sampler's settings: the maker's presets, and their shape for any number of steps.

diffusers' pipeline takes the guidance first step first and refuses a schedule whose length is not the
number of steps; its default has 48 entries, which is why asking it for 25 steps alone fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.contract import MAX_STEPS, GenerationRequest, Preset

MAIN_GUIDANCE = 7.0
POLISH_GUIDANCE = 3.0
"""The last steps, about one in sixteen, follow the prompt less and clean the picture up."""
QUALITY_FROM_STEPS = 40
"""From here on a free step count takes the noise schedule of QUALITY_48, below that of DEFAULT_20."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """One run of the sampler. `guidance` has one entry a step, first step first.

    `mu` and `std` shape the logit-normal noise schedule at 512x512; the pipeline shifts `mu` for other sizes.
    """

    steps: int
    guidance: tuple[float, ...]
    mu: float
    std: float

    def __post_init__(self) -> None:
        if len(self.guidance) != self.steps:
            raise ValueError(f"{self.steps} steps want as many guidance entries, not {len(self.guidance)}")


def _shaped(steps: int, polish: int, mu: float, std: float) -> Sampling:
    guidance = (MAIN_GUIDANCE,) * (steps - polish) + (POLISH_GUIDANCE,) * polish
    return Sampling(steps=steps, guidance=guidance, mu=mu, std=std)


PRESETS = {
    Preset.QUALITY_48: _shaped(48, polish=3, mu=0.0, std=1.5),
    Preset.DEFAULT_20: _shaped(20, polish=2, mu=0.0, std=1.75),
    Preset.TURBO_12: _shaped(12, polish=1, mu=0.5, std=1.75),
}
"""The maker's numbers. Their own source writes the guidance last step first."""


def free(steps: int) -> Sampling:
    """`steps` (1 to 100) steps in the presets' shape. One step alone is all polish."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps: {steps} is not within 1 to {MAX_STEPS}")
    return _shaped(steps, polish=max(1, round(steps / 16)), mu=0.0, std=1.5 if steps >= QUALITY_FROM_STEPS else 1.75)


def sampling(request: GenerationRequest) -> Sampling:
    """What `request` asks of the sampler: its steps, else its preset, else V4_DEFAULT_20."""
    if request.steps is not None:
        shaped = free(request.steps)
        return Sampling(
            steps=request.steps,
            guidance=shaped.guidance if request.guidance is None else request.guidance,
            mu=shaped.mu if request.mu is None else request.mu,
            std=shaped.std if request.std is None else request.std,
        )
    return PRESETS[request.preset or Preset.DEFAULT_20]
