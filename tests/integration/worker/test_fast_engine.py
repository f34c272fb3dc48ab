"""The fast engine over the tiny repository on the CPU: exactly the pipeline's numbers, in whatever it is asked for.

The measure is latents after the last step, in float32, against `Ideogram4Pipeline` as anybody would load it.
Speed and the GPU's own numbers are `make bench-gpu`'s.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from structlog.testing import capture_logs

from worker.contract import MAX_PROMPT_TOKENS, GenerationRequest, Preset, Tier
from worker.engine import InvalidRequestError, LoadError, NoRoomError, StoppedError, TooLargeError, caches
from worker.engine.denoise import Branches, Given, denoise
from worker.engine.fast import FastEngine
from worker.engine.kernels import Format, Operand
from worker.engine.kernels.plain import PlainKernels
from worker.presets import sampling
from worker.untyped import Untyped, diffusers

PROMPT = "three foxes reading the morning paper"
EXACT = 1e-5
"""The most that any latent may differ by; they are of the order of one."""


@dataclass(frozen=True)
class Stock:
    """The pipeline as anybody would load it, and as it pads by default."""

    pipe: Untyped

    def _made(self, request: GenerationRequest, **more: object) -> Untyped:
        wanted = sampling(request)
        return self.pipe(
            request.text,
            height=request.height,
            width=request.width,
            num_inference_steps=wanted.steps,
            guidance_schedule=list(wanted.guidance),
            mu=wanted.mu,
            std=wanted.std,
            generator=torch.Generator().manual_seed(request.seed),
            **more,
        ).images

    def latents(self, request: GenerationRequest, *, padded_to: int = MAX_PROMPT_TOKENS) -> torch.Tensor:
        return torch.as_tensor(self._made(request, max_sequence_length=padded_to, output_type="latent"))[0]

    def picture(self, request: GenerationRequest) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
        assert self.latents(request).isfinite().all()
        return np.asarray(self._made(request)[0]).astype(np.int16)


def loaded(cache: Path, tier: Tier = Tier.EXACT, model: str = "tiny") -> FastEngine:
    engine = FastEngine(model, "cpu", cache, tier, warm=(), cpu_threads=1)
    engine.load(lambda _: None)
    return engine


@pytest.fixture(scope="module")
def engine(tiny_cache: Path) -> FastEngine:
    return loaded(tiny_cache)


@pytest.fixture(scope="module")
def stock(tiny_repository: Path) -> Stock:
    pipe = diffusers.Ideogram4Pipeline.from_pretrained(tiny_repository)
    pipe.set_progress_bar_config(disable=True)
    return Stock(pipe)


def request(
    prompt: str = PROMPT,
    *,
    steps: int | None = 3,
    preset: Preset | None = None,
    seed: int = 7,
    width: int = 256,
    height: int = 256,
) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, width=width, height=height, steps=steps, preset=preset, seed=seed)


def latents(engine: FastEngine, wanted: GenerationRequest) -> torch.Tensor:
    given = engine.prepare(wanted).payload
    assert isinstance(given, Given)
    with torch.no_grad():
        return denoise(branches(engine), given, lambda _: None, lambda: False)


def branches(engine: FastEngine) -> Branches:
    assert engine._loaded is not None
    return engine._loaded.branches


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("preset", list(Preset))
def test_a_preset_has_the_stock_pipelines_latents(engine: FastEngine, stock: Stock, preset: Preset) -> None:
    wanted = request(steps=None, preset=preset)
    assert apart(latents(engine, wanted), stock.latents(wanted, padded_to=64)) < EXACT


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 40, 100])
def test_any_number_of_steps_has_the_stock_pipelines_latents(engine: FastEngine, stock: Stock, steps: int) -> None:
    wanted = request(steps=steps)
    assert apart(latents(engine, wanted), stock.latents(wanted, padded_to=64)) < EXACT


@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 256), (256, 768), (1536, 256), (272, 304)])
def test_any_size_and_shape_has_the_stock_pipelines_latents(
    engine: FastEngine, stock: Stock, width: int, height: int
) -> None:
    wanted = request(width=width, height=height)
    assert apart(latents(engine, wanted), stock.latents(wanted, padded_to=64)) < EXACT


@pytest.mark.parametrize("words", [1, 40, 400, 1000])
def test_a_prompt_of_any_length_has_the_latents_that_stock_padding_has(
    engine: FastEngine, stock: Stock, words: int
) -> None:
    wanted = request("ink " * words, steps=2)
    assert apart(latents(engine, wanted), stock.latents(wanted)) < EXACT


def test_the_longest_prompt_is_drawn_and_one_token_more_is_refused(engine: FastEngine, stock: Stock) -> None:
    assert engine._loaded is not None
    count = engine._loaded.tokenizer
    a_word = len(count("a a")) - len(count("a"))
    words = (MAX_PROMPT_TOKENS - len(count("a"))) // a_word
    longest = request("a" + " a" * words, steps=1)
    assert MAX_PROMPT_TOKENS - a_word < len(count(longest.text)) <= MAX_PROMPT_TOKENS
    assert apart(latents(engine, longest), stock.latents(longest)) < EXACT
    with pytest.raises(InvalidRequestError, match=f"the text encoder takes {MAX_PROMPT_TOKENS}"):
        engine.prepare(request("a" + " a" * (words + 1)))


def test_the_picture_is_the_stock_pipelines_to_the_last_bit_of_a_channel(engine: FastEngine, stock: Stock) -> None:
    wanted = request(width=320)
    made = engine.render(engine.prepare(wanted), lambda _: None, lambda: False)
    assert made.image.size == (320, 256)
    assert np.abs(np.asarray(made.image).astype(np.int16) - stock.picture(wanted)).max() <= 1


def test_the_same_request_makes_the_same_pixels_whatever_was_made_between(engine: FastEngine, tiny_cache: Path) -> None:
    def make(maker: FastEngine, wanted: GenerationRequest) -> bytes:
        return maker.render(maker.prepare(wanted), lambda _: None, lambda: False).image.tobytes()

    first = make(engine, request())
    ahead = engine.prepare(request("another prompt", seed=8))
    assert make(engine, request()) == first
    engine.render(ahead, lambda _: None, lambda: False)
    assert make(engine, request()) == first == make(loaded(tiny_cache), request())


def test_a_guidance_of_one_leaves_the_unconditional_branch_alone(engine: FastEngine) -> None:
    given = engine.prepare(request(steps=1)).payload
    assert isinstance(given, Given)
    alone = Given(
        given.conditional,
        None,
        type(given.schedule)(given.schedule.times, (1.0,), given.schedule.deltas),
        given.latents,
    )
    both = Given(given.conditional, given.unconditional, alone.schedule, given.latents)
    with torch.no_grad():
        made = [denoise(branches(engine), one, lambda _: None, lambda: False) for one in (alone, both)]
    assert torch.equal(*made)


def test_an_own_guidance_schedule_has_the_stock_pipelines_latents(engine: FastEngine, stock: Stock) -> None:
    wanted = GenerationRequest(prompt=PROMPT, width=256, height=256, steps=4, guidance=(7.5, 1.0, 3.0, 0.5), seed=7)
    assert apart(latents(engine, wanted), stock.latents(wanted, padded_to=64)) < EXACT


def test_a_cold_start_names_what_its_seconds_went_into(tiny_cache: Path) -> None:
    began = time.monotonic()
    with capture_logs() as said:
        loaded(tiny_cache)
    took = time.monotonic() - began
    (line,) = (entry for entry in said if entry["event"] == "cold start")
    parts = ["process and imports", "weights", "plan", "tokenizer", "text encoder"]
    parts += ["transformer", "unconditional_transformer", "decoder"]
    assert list(line["seconds"]) == parts
    since = psutil.Process().create_time()
    assert 0 < line["seconds"].pop("process and imports") <= time.time() - since + 1
    assert 0.5 * took < sum(line["seconds"].values()) <= took + 0.1


def test_every_step_is_told_once_and_in_order(engine: FastEngine) -> None:
    seen: list[int] = []
    engine.render(engine.prepare(request(steps=5)), seen.append, lambda: False)
    assert seen == [1, 2, 3, 4, 5]


def test_a_cancelled_picture_stops_within_a_step_and_leaves_the_engine_usable(engine: FastEngine) -> None:
    seen: list[int] = []
    prepared = engine.prepare(request(steps=50))
    with pytest.raises(StoppedError):
        engine.render(prepared, seen.append, lambda: len(seen) >= 3)
    assert seen == [1, 2, 3]
    assert engine.render(engine.prepare(request()), lambda _: None, lambda: False).image.size == (256, 256)


@pytest.mark.parametrize(("tier", "error"), [(Tier.FP8, 0.1), (Tier.FP8_ATTENTION, 0.15), (Tier.INT8, 0.03)])
def test_a_lossy_tier_is_near_and_not_the_same(tiny_cache: Path, engine: FastEngine, tier: Tier, error: float) -> None:
    theirs, ours = latents(engine, request()), latents(loaded(tiny_cache, tier), request())
    off = float((ours - theirs).norm() / theirs.norm())
    assert 1e-5 < off < error


def test_an_image_that_does_not_fit_is_refused_for_this_device_and_not_for_good(engine: FastEngine) -> None:
    assert engine._loaded is not None
    whole = engine._loaded
    engine._loaded = replace(whole, plan=replace(whole.plan, max_pixels=512 * 512, free=2.0**30))
    try:
        with pytest.raises(TooLargeError, match=r"1024x512 needs .* and 1.0 are free .*; .*720x352 fits"):
            engine.prepare(request(width=1024, height=512))
        engine.prepare(request(width=512, height=512))
    finally:
        engine._loaded = whole


@dataclass
class Building(PlainKernels):
    """Builds a kernel when it is first used, as Triton does: a file in its cache's folder."""

    folder: Path

    def __post_init__(self) -> None:
        super().__init__(torch.float32)

    def norm(self, x: torch.Tensor, before: torch.Tensor, eps: float, to: Format) -> Operand:
        (self.folder / "norm.cubin").touch()
        return super().norm(x, before, eps, to)


def test_a_kernel_that_cannot_be_kept_fails_its_image_by_the_folders_name(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(caches.VARIABLE, "")  # so that what is set is undone
    monkeypatch.setattr(caches, "MEMORY", tmp_path)
    engine, folder = loaded(tiny_cache), tmp_path / "gone"
    engine._kernels = caches.KernelCache(folder, 0)
    for transformer in (branches(engine).conditional, branches(engine).unconditional):
        transformer._kernels = Building(folder)
    with pytest.raises(NoRoomError, match=f"{folder}: kernels cannot be kept there"):
        engine.render(engine.prepare(request()), lambda _: None, lambda: False)
    folder.mkdir()
    engine.render(engine.prepare(request()), lambda _: None, lambda: False)


def test_nf4_is_refused_for_weights_that_are_not(tiny_cache: Path) -> None:
    with pytest.raises(LoadError, match=r"these are not nf4; .*take another tier"):
        loaded(tiny_cache, Tier.NF4)
