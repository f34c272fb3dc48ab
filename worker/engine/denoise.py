"""The sampler: what `Ideogram4Pipeline.__call__` does between the text and the VAE, for one image.

Everything that does not depend on the picture so far is worked out before the first step
(`worker.engine.transformer.Conditioning`), and a step is only queued on the GPU: the next one is queued
before anybody waits for it, so the GPU is never without work and progress costs nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine import StoppedError
from worker.engine.transformer import Conditioning, Transformer
from worker.presets import Sampling
from worker.untyped import Untyped, diffusers

PIXELS_PER_TOKEN = 16
"""A side."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """One entry a step, first step first: the model's time (0 noise, 1 data), the guidance, and how far to go."""

    times: tuple[float, ...]
    guidance: tuple[float, ...]
    deltas: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.times)

    @property
    def guided(self) -> bool:
        """Whether any step wants the unconditional branch: with a guidance of 1 it counts for nothing."""
        return any(guidance != 1.0 for guidance in self.guidance)


def schedule(scheduler: Untyped, wanted: Sampling, width: int, height: int) -> Schedule:
    """The pipeline's own schedule for an image of `width` x `height`, by its own functions and scheduler."""
    pipeline = diffusers.pipelines.ideogram4.pipeline_ideogram4
    mu = pipeline._resolution_aware_mu(height=height, width=width, base_mu=wanted.mu)  # noqa: SLF001 - pinned
    sigmas = pipeline._logit_normal_sigmas(wanted.steps, mu, std=wanted.std)  # noqa: SLF001
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(sigmas=sigmas.tolist(), device="cpu")
    times = 1.0 - scheduler.timesteps.float() / scheduler.config.num_train_timesteps
    deltas = scheduler.sigmas[1:] - scheduler.sigmas[:-1]
    return Schedule(tuple(times.tolist()), wanted.guidance, tuple(deltas.tolist()))


@dataclass(frozen=True, slots=True)
class Branches:
    """The two transformers: one that is told the text, one that is not."""

    conditional: Transformer
    unconditional: Transformer


@dataclass(frozen=True, slots=True)
class Given:
    """All that a picture's steps need, on the device. `latents` is the noise: image tokens x channels, float32."""

    conditional: Conditioning
    unconditional: Conditioning | None
    schedule: Schedule
    latents: Tensor


def denoise(branches: Branches, given: Given, on_step: Callable[[int], None], stop: Callable[[], bool]) -> Tensor:
    """Latents after the last step. StoppedError if `stop` says so between two of them.

    On a GPU the last step may still be at work when this returns; the caller waits for what comes of it.
    """
    latents, plan = given.latents, given.schedule
    mark = _Marks(latents.device)
    for step in range(plan.steps):
        velocity = velocity_at(branches, given, latents, step)
        latents = latents - plan.deltas[step] * velocity
        mark.queued()
        if step:
            mark.wait_for_last_but_one()
            on_step(step)
            if stop():
                raise StoppedError(f"stopped after step {step} of {plan.steps}")
    return latents


def velocity_at(branches: Branches, given: Given, latents: Tensor, step: int) -> Tensor:
    """Where `latents` go in step `step`, 0-based; both branches' word, by the step's guidance."""
    guidance = given.schedule.guidance[step]
    z = latents.to(branches.conditional.dtype)
    told = branches.conditional.velocity(z, given.conditional, step).float()
    if given.unconditional is None or guidance == 1.0:
        return told
    untold = branches.unconditional.velocity(z, given.unconditional, step).float()
    return guidance * told + (1.0 - guidance) * untold


class _Marks:
    """Where on the device's stream steps end; a CPU has ended each when its call returns."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []

    def queued(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch's
            event.record()
            self._events.append(event)

    def wait_for_last_but_one(self) -> None:
        if self._on_gpu:
            self._events.pop(0).synchronize()
