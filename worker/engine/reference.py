"""The reference engine: diffusers' `Ideogram4Pipeline` as it comes, through its own call.

It is what every faster engine is compared with, and it stays selectable. It serves the tiny model on a
CPU, and on a GPU any repository in diffusers' layout; the nf4 ones carry their quantisation in their
configuration, so they load as any other. (Those are gated: this was tried with random weights only.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from worker import tiny, weights
from worker.contract import GenerationRequest
from worker.engine import (
    Description,
    EngineBrokenError,
    LoadError,
    OnStage,
    OnStep,
    Prepared,
    Rendered,
    Stop,
    StoppedError,
)
from worker.engine.device import find_device, named, settle, torch_errors
from worker.engine.text import Tokenizer
from worker.presets import sampling
from worker.untyped import Untyped, diffusers, quiet


class ReferenceEngine:
    """The stock pipeline on one device. `cpu_threads` bounds torch's threads; None leaves them alone."""

    def __init__(self, model: str, device: str, cache: Path, cpu_threads: int | None = None) -> None:
        self._model = model
        self._wanted = device
        self._cache = cache
        self._threads = cpu_threads
        self._pipe: Untyped = None
        self._tokenizer: Tokenizer | None = None

    def load(self, on_stage: OnStage) -> Description:
        quiet()
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        device = find_device(self._wanted, self._model)
        folder = weights.locate(self._model, self._cache, on_stage)
        on_stage(f"loading {self._model} to {device}")
        # fp16 gives NaN in these weights; a CPU is slow in bf16.
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with torch_errors():
            try:
                pipe = diffusers.Ideogram4Pipeline.from_pretrained(folder, dtype=dtype).to(device)
            except (OSError, ValueError) as error:
                raise LoadError(f"model {self._model} cannot be loaded from {folder}: {error}") from error
        pipe.set_progress_bar_config(disable=True)
        self._pipe = pipe
        # One of its own for the thread that prepares: a tokenizer that is in use raises "Already borrowed".
        self._tokenizer = Tokenizer(folder / "tokenizer")
        notice = tiny.NOTICE if tiny.is_tiny(folder) else ""
        return Description(model=self._model, engine="reference", device=named(device), notice=notice)

    def prepare(self, request: GenerationRequest) -> Prepared:
        """Counts tokens and no more: the pipeline's one call encodes the text too."""
        if self._tokenizer is None:
            raise EngineBrokenError("the engine was asked for an image before it was loaded")
        begun = time.monotonic()
        tokens = len(self._tokenizer(request.text))
        return Prepared(request=request, payload=tokens, text=time.monotonic() - begun)

    def render(self, prepared: Prepared, on_step: OnStep, stop: Stop) -> Rendered:
        pipe, request = self._pipe, prepared.request
        wanted = sampling(request)
        watch = _Watch(settle=lambda: settle(pipe.device))
        begun = pipe.transformer.register_forward_pre_hook(lambda *_: watch.text_done())

        def after_step(_pipe: object, index: int, _t: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            watch.step_done()
            on_step(index + 1)
            if stop():
                raise StoppedError(f"stopped after step {index + 1} of {wanted.steps}")
            return kwargs

        try:
            with torch_errors():
                image = pipe(
                    request.text,
                    height=request.height,
                    width=request.width,
                    num_inference_steps=wanted.steps,
                    guidance_schedule=list(wanted.guidance),
                    mu=wanted.mu,
                    std=wanted.std,
                    # Exactly as long as the prompt. The default pads every prompt to 2048 tokens and masks them
                    # out again; positions are counted per prompt, so the numbers are the same (latents after 20
                    # steps differ by 2e-7 of their range in float32) and a third of a 1024x1024 step is saved.
                    max_sequence_length=prepared.payload,
                    # Drawn on the CPU, so that a seed means the same noise on every device.
                    generator=torch.Generator("cpu").manual_seed(request.seed),
                    callback_on_step_end=after_step,
                ).images[0]
        finally:
            begun.remove()
        return watch.rendered(image)


@dataclass
class _Watch:
    """Reads the clock where one part ends and the next begins. `settle` waits for queued work first."""

    settle: Callable[[], None]
    begun: float = field(default_factory=time.monotonic)
    text: float | None = None
    denoise: float | None = None

    def text_done(self) -> None:
        """Called before every use of the transformer; the first one ends the text part."""
        if self.text is None:
            self.text = self._now()

    def step_done(self) -> None:
        self.denoise = self._now()

    def rendered(self, image: Untyped) -> Rendered:
        """The image, and the parts up to now; decoding is the last."""
        if self.text is None or self.denoise is None:
            raise EngineBrokenError("the pipeline returned without using its transformer; is it another version?")
        return Rendered(
            image=image,
            text=self.text - self.begun,
            denoise=self.denoise - self.text,
            decode=self._now() - self.denoise,
        )

    def _now(self) -> float:
        self.settle()
        return time.monotonic()
