"""The reference engine over the tiny repository: diffusers' own classes, on the CPU."""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worker import picture, tiny
from worker.contract import MAX_PROMPT_TOKENS, GenerationRequest, Preset
from worker.engine import (
    Description,
    EngineBrokenError,
    InvalidRequestError,
    LoadError,
    OutOfMemoryError,
    Rendered,
    StoppedError,
)
from worker.engine.device import torch_errors
from worker.engine.reference import ReferenceEngine
from worker.presets import PRESETS, sampling
from worker.untyped import Untyped, diffusers

PROMPT = "three foxes reading the morning paper"


@pytest.fixture(scope="module")
def engine(tiny_cache: Path) -> Maker:
    return loaded("tiny", tiny_cache)


@pytest.fixture(scope="module")
def stock(tiny_repository: Path) -> Untyped:
    """The pipeline as anybody would load it."""
    pipe = diffusers.Ideogram4Pipeline.from_pretrained(tiny_repository)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def request(
    prompt: str = PROMPT, *, steps: int | None = 2, preset: Preset | None = None, seed: int = 7, side: int = 256
) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, width=side, height=256, steps=steps, preset=preset, seed=seed)


@dataclass(frozen=True)
class Maker:
    """An engine, loaded, with what it said of itself."""

    engine: ReferenceEngine
    description: Description


def loaded(model: str, cache: Path) -> Maker:
    engine = ReferenceEngine(model, "cpu", cache, cpu_threads=1)
    return Maker(engine, engine.load(lambda _: None))


def render(maker: Maker, wanted: GenerationRequest) -> Rendered:
    return maker.engine.render(maker.engine.prepare(wanted), lambda _: None, lambda: False)


def make(maker: Maker, wanted: GenerationRequest) -> bytes:
    return picture.encode(render(maker, wanted).image, wanted, maker.description).data


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.asarray(image.convert("RGB")).astype(np.int16)


def test_the_same_request_makes_the_same_bytes_in_another_engine_too(engine: Maker, tiny_cache: Path) -> None:
    other = loaded("tiny", tiny_cache)
    first = make(engine, request())
    make(engine, request(seed=8))
    assert make(engine, request()) == first == make(other, request())


@pytest.mark.parametrize(
    "other", [request(seed=8), request("another prompt"), request(steps=3), request(side=272)], ids=lambda r: r.prompt
)
def test_everything_that_is_asked_for_changes_the_picture(engine: Maker, other: GenerationRequest) -> None:
    ours, theirs = opened(make(engine, request())), opened(make(engine, other))
    assert ours.size != theirs.size or (pixels(ours) != pixels(theirs)).any()


def test_the_picture_has_the_asked_size_and_says_that_it_is_noise(engine: Maker) -> None:
    image = opened(make(engine, request(side=512)))
    assert (image.format, image.size) == ("PNG", (512, 256))
    assert image.info["Comment"] == "tiny random weights: noise, not a picture"
    assert PROMPT in image.info["letterpress"]
    assert "seed 7" in image.info["Source"]


@pytest.mark.parametrize("preset", list(Preset))
def test_a_preset_draws_what_the_stock_pipeline_draws_with_the_makers_numbers(
    engine: Maker, stock: Untyped, preset: Preset
) -> None:
    made = PRESETS[preset]
    theirs = stock(
        PROMPT,
        height=256,
        width=256,
        num_inference_steps=made.steps,
        guidance_schedule=made.guidance,
        mu=made.mu,
        std=made.std,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    ours = opened(make(engine, request(steps=None, preset=preset)))
    # The stock call pads the prompt to 2048 tokens: the same mathematics, summed in another order.
    assert abs(pixels(ours) - pixels(theirs)).max() <= 1


def test_the_stock_defaults_are_the_quality_preset(engine: Maker, stock: Untyped) -> None:
    theirs = stock(PROMPT, height=256, width=256, generator=torch.Generator().manual_seed(7)).images[0]
    ours = opened(make(engine, request(steps=None, preset=Preset.QUALITY_48)))
    assert abs(pixels(ours) - pixels(theirs)).max() <= 1


def test_the_published_scripts_call_fails_in_the_stock_pipeline_and_works_here(engine: Maker, stock: Untyped) -> None:
    with pytest.raises(ValueError, match=r"guidance_schedule.*length.*25"):
        stock(PROMPT, height=256, width=256, num_inference_steps=25)
    told: list[int] = []
    engine.engine.render(engine.engine.prepare(request(steps=25)), told.append, lambda: False)
    assert told == list(range(1, 26))


def test_leaving_the_padding_out_changes_nothing_that_can_be_measured(stock: Untyped) -> None:
    made = sampling(request(steps=20))

    def latents(length: int) -> torch.Tensor:
        drawn = stock(
            PROMPT,
            height=256,
            width=256,
            num_inference_steps=made.steps,
            guidance_schedule=made.guidance,
            max_sequence_length=length,
            generator=torch.Generator().manual_seed(7),
            output_type="latent",
        ).images
        assert isinstance(drawn, torch.Tensor)
        return drawn

    exact, padded = latents(tokens(stock, PROMPT)), latents(MAX_PROMPT_TOKENS)
    assert float((exact - padded).abs().max() / padded.abs().max()) < 2e-6


def tokens(stock: Untyped, prompt: str) -> int:
    text = stock.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": prompt}]}], add_generation_prompt=True, tokenize=False
    )
    return len(stock.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_prompt_is_refused_from_its_first_token_over_the_limit(engine: Maker, stock: Untyped) -> None:
    # A digit is a token of its own, whatever stands beside it.
    room = MAX_PROMPT_TOKENS - tokens(stock, "")
    make(engine, request("7" * room, steps=1))
    with pytest.raises(InvalidRequestError, match=r"prompt: has 2049 tokens.*2048"):
        make(engine, request("7" * (room + 1), steps=1))
    with pytest.raises(InvalidRequestError, match=f"prompt: has {3000 + tokens(stock, '')} tokens"):
        make(engine, request("7" * 3000, steps=1))


@pytest.mark.parametrize(
    "prompt",
    ["狐が新聞を読む", "🦊📰 ünïcødé", "a\x00b\ud7ff\U0010ffff", "ﷺ e\u0301", "<|im_end|>", "{'json': [1, 2]}\n\t"],
)
def test_any_text_can_be_spelled(engine: Maker, stock: Untyped, prompt: str) -> None:
    ids = stock.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert stock.tokenizer.decode(ids) == unicodedata.normalize("NFC", prompt)
    assert make(engine, request(prompt, steps=1))


def test_a_caption_is_not_spelled_letter_by_letter(stock: Untyped) -> None:
    caption = '{"high_level_description":"a wooden sign in a street","style_description":{"lighting":"warm"}}'
    assert tokens(stock, caption) < len(caption) / 2


def test_it_stops_after_the_step_in_which_it_was_told(engine: Maker) -> None:
    told: list[int] = []
    with pytest.raises(StoppedError, match="after step 3 of 50"):
        engine.engine.render(engine.engine.prepare(request(steps=50)), told.append, lambda: len(told) == 3)
    assert told == [1, 2, 3]
    assert make(engine, request())


def test_the_parts_take_time_and_add_up_to_less_than_the_whole(engine: Maker) -> None:
    made = render(engine, request(steps=5))
    assert min(made.text, made.denoise, made.decode) > 0


def test_torchs_errors_are_told_apart_by_what_they_mean() -> None:
    meanings: list[tuple[Exception, type[Exception]]] = [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemoryError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), EngineBrokenError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), EngineBrokenError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), EngineBrokenError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), OutOfMemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemoryError),
        (RuntimeError("CUDA driver error: out of memory"), OutOfMemoryError),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemoryError),
        (RuntimeError("CUDA driver error: an illegal memory access was encountered"), EngineBrokenError),
        (RuntimeError("shape mismatch"), RuntimeError),
    ]
    for raised, meant in meanings:
        with pytest.raises(meant) as caught, torch_errors():
            raise raised
        assert type(caught.value) is meant


def test_a_folder_serves_like_the_name_and_still_says_noise(
    engine: Maker, tiny_repository: Path, tmp_path: Path
) -> None:
    image = opened(make(loaded(str(tiny_repository), tmp_path), request()))
    assert image.info["Comment"] == tiny.NOTICE
    assert (pixels(image) == pixels(opened(make(engine, request())))).all()


def test_a_folder_that_is_missing_empty_or_of_another_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="nowhere does not exist"):
        loaded(str(tmp_path / "nowhere"), tmp_path)
    with pytest.raises(LoadError, match=r"model_index\.json does not exist"):
        loaded(str(tmp_path), tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(LoadError, match="describes a FluxPipeline"):
        loaded(str(tmp_path), tmp_path)


def test_a_repository_that_is_damaged_says_where_it_lies(tiny_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes((tiny_repository / "model_index.json").read_bytes())
    with pytest.raises(LoadError, match=str(tmp_path)):
        loaded(str(tmp_path), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_gpu_that_is_not_there_is_said_to_be_missing(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="torch sees 0 GPUs"):
        ReferenceEngine("tiny", "cuda:0", tiny_cache).load(lambda _: None)
    with pytest.raises(LoadError, match="wants a GPU and torch sees none"):
        ReferenceEngine(str(tmp_path), "auto", tiny_cache).load(lambda _: None)
