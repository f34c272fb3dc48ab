"""The fast engine: the pipeline's mathematics in an order that a GPU likes, in the tier that was asked for.

`prepare` encodes the text and works out all that a picture's steps share, on a stream of its own while
another picture is rendered; `render` denoises and decodes. Nothing is compiled, so a new prompt length or
size costs nothing. What is fast about it stands in the modules beside this one.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import structlog
import torch

from worker import tiny, weights
from worker.contract import MAX_PIXELS, MIN_SIDE, GenerationRequest, Tier
from worker.engine import (
    Description,
    EngineBrokenError,
    LoadError,
    OnStage,
    OnStep,
    Prepared,
    Rendered,
    Stop,
    TooLargeError,
    caches,
    memory,
    room,
)
from worker.engine.attention import SmallAttention
from worker.engine.checkpoint import Checkpoint
from worker.engine.decode import Decoder, picture
from worker.engine.denoise import PIXELS_PER_TOKEN, Branches, Given, denoise, schedule
from worker.engine.device import find_device, named, settle, torch_errors
from worker.engine.kernels import Kernels
from worker.engine.kernels.plain import PlainKernels
from worker.engine.text import TextEncoder, Tokenizer
from worker.engine.tier import Gpu, why_not
from worker.engine.transformer import Shape, Transformer
from worker.presets import sampling
from worker.untyped import Untyped, diffusers, quiet

WARM_PROMPTS = ("a", "a letterpress print shop at night, " * 8)
"""Two lengths: some libraries build a plan for the first shape of a kind and are quick about the others."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    device: torch.device
    tokenizer: Tokenizer
    encoder: TextEncoder
    branches: Branches
    decoder: Decoder
    scheduler: Untyped
    plan: memory.Plan


class FastEngine:
    """`warm` are the sizes (width, height) that are made once before the engine says it is ready, on a GPU.

    The largest of them has to fit into the device's memory, or loading refuses.
    """

    def __init__(
        self,
        model: str,
        device: str,
        cache: Path,
        tier: Tier,
        warm: Sequence[tuple[int, int]],
        cpu_threads: int | None = None,
    ) -> None:
        self._model = model
        self._wanted = device
        self._cache = cache
        self._tier = tier
        self._warm = warm
        self._threads = cpu_threads
        self._loaded: _Loaded | None = None
        self._side: torch.cuda.Stream | None = None
        self._kernels: caches.KernelCache | None = None
        self._alone = threading.Lock()

    @torch.no_grad()
    def load(self, on_stage: OnStage) -> Description:
        spent = _Stages(on_stage)
        quiet()
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        device = find_device(self._wanted, self._model)
        gpu = _gpu(device)
        if refusal := why_not(self._tier, gpu):
            raise LoadError(f"tier {self._tier}: {refusal}")
        if gpu is not None and self._tier is Tier.FP8_ATTENTION and find_spec("cudnn") is None:
            raise LoadError(f"tier {self._tier} wants nvidia-cudnn-frontend: install it, or take {Tier.FP8}")
        with spent.stage("weights", f"finding {self._model}"):
            folder = weights.locate(self._model, self._cache, on_stage)
        with spent.stage("plan", "working out what fits"):
            plan = self._plan(folder, device, gpu, on_stage)
        if device.type == "cuda":
            # Triton launches, and events are recorded, on the thread's current device, whatever their tensors are on.
            torch.cuda.set_device(device)
        plain = _why_plain(gpu)
        if gpu is not None and plain is None:
            self._kernels = caches.use(caches.kernels(self._cache, gpu.name))
        if gpu is not None:
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
        with torch_errors():
            self._loaded = _load(folder, device, self._tier, plan, spent, triton=self._kernels is not None)
            if gpu is not None:
                for width, height in self._warm:
                    with spent.stage(f"warm {width}x{height}", f"making a first image of {width}x{height}"):
                        self._warm_up(width, height)
        log.info(
            "cold start",
            tier=self._tier,
            seconds=spent.seconds,
            kernels_kept=self._kernels.before if self._kernels else 0,
            kernels_built=self._kernels.built if self._kernels else 0,
        )
        return Description(
            model=self._model,
            engine="fast",
            device=named(device),
            tier=self._tier,
            max_pixels=plan.max_pixels,
            notice=tiny.NOTICE if tiny.is_tiny(folder) else "",
        )

    @torch.no_grad()
    def prepare(self, request: GenerationRequest) -> Prepared:
        loaded = self._ready()
        begun = time.monotonic()
        if refusal := loaded.plan.why_not(request.width, request.height):
            raise TooLargeError(refusal)
        ids = loaded.tokenizer(request.text)
        with ExitStack() as stack:
            stack.enter_context(torch_errors())
            stack.enter_context(self._building())
            if loaded.plan.text.parked:
                # There is room for the text encoder or for a picture, not for both.
                stack.enter_context(self._alone)
            if self._side is not None:
                stack.enter_context(torch.cuda.stream(self._side))
            given = _given(loaded, request, ids)
            if self._side is not None:
                self._side.synchronize()
        return Prepared(request=request, payload=given, text=time.monotonic() - begun)

    @torch.no_grad()
    def render(self, prepared: Prepared, on_step: OnStep, stop: Stop) -> Rendered:
        loaded, given = self._ready(), prepared.payload
        assert isinstance(given, Given)  # noqa: S101 - it is ours; tells the type checker
        begun = time.monotonic()
        grid = _grid(prepared.request)
        with torch_errors(), self._building(), self._alone:
            try:
                latents = denoise(loaded.branches, given, on_step, stop)
                ended = _Mark(loaded.device)
                pixels = loaded.decoder.pixels(latents, grid)
                denoised = ended.reached()
                on_step(given.schedule.steps)
                image = picture(pixels)
            finally:
                # What was prepared is given back with the request. The other stream may write there at once, so
                # nothing that reads it may still be under way, least of all after an error.
                settle(loaded.device)
        return Rendered(image=image, denoise=denoised - begun, decode=time.monotonic() - denoised)

    def _building(self) -> AbstractContextManager[None]:
        return self._kernels.writing() if self._kernels else nullcontext()

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise EngineBrokenError("the engine was asked for an image before it was loaded")
        return self._loaded

    def _plan(self, folder: Path, device: torch.device, gpu: Gpu | None, on_stage: OnStage) -> memory.Plan:
        """What fits, before anything is loaded. A CPU's memory is the system's business."""
        wanted = max((width * height for width, height in self._warm), default=MIN_SIDE * MIN_SIDE)
        nf4, text_nf4 = (_packed(folder / part) for part in ("transformer", "text_encoder"))
        shape, text = Shape.read(folder / "transformer"), memory.TextShape.read(folder / "text_encoder")
        model = memory.Model(shape, text, nf4=nf4, text_nf4=text_nf4)
        if device.type != "cuda":
            packed = memory.Text(packed=self._tier is Tier.NF4 and text_nf4, parked=False)
            return memory.Plan(model, self._tier, packed, MAX_PIXELS, math.inf)
        plan = room.planned(partial(memory.plan, model, self._tier, wanted_pixels=wanted, gpu=gpu), device, on_stage)
        log.info(
            "memory",
            tier=self._tier,
            text=str(plan.text),
            free_gib=round(plan.free / memory.GIB, 1),
            max_pixels=plan.max_pixels,
            parts_gib={name: round(size / memory.GIB, 2) for name, size in plan.parts(wanted).items()},
        )
        return plan

    def _warm_up(self, width: int, height: int) -> None:
        for prompt in WARM_PROMPTS:
            request = GenerationRequest(prompt=prompt, width=width, height=height, steps=1, seed=0)
            self.render(self.prepare(request), lambda _: None, lambda: False)


def _packed(folder: Path) -> bool:
    with Checkpoint(folder, torch.device("cpu")) as checkpoint:
        return checkpoint.packed


class _Stages:
    """Tells what loading does, and keeps how long each part of it took, in seconds."""

    def __init__(self, on_stage: OnStage) -> None:
        self._on_stage = on_stage
        self.seconds: dict[str, float] = {"process and imports": round(_age_s(), 2)}

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[None]:
        self._on_stage(doing)
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 2)


def _age_s() -> float:
    """Seconds since this process was begun, by the system's clock of 10 ms."""
    started = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")


class _Mark:
    """A place on the device's stream, and the time when the device got there."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._passed = time.monotonic()
        if device.type == "cuda":
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch's
            self._event.record()

    def reached(self) -> float:
        if self._event is None:
            return self._passed
        self._event.synchronize()
        return time.monotonic()


def _load(
    folder: Path, device: torch.device, tier: Tier, plan: memory.Plan, spent: _Stages, *, triton: bool
) -> _Loaded:
    # fp16 gives NaN in these weights; a CPU is slow in bf16.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kernels = _kernels(dtype, triton=triton)
    shape = Shape.read(folder / "transformer")
    small = SmallAttention() if tier is Tier.FP8_ATTENTION else None
    with spent.stage("tokenizer", "loading the tokenizer"):
        tokenizer = Tokenizer(folder / "tokenizer")
    with spent.stage("text encoder", "loading the text encoder"):
        encoder = TextEncoder(folder / "text_encoder", device, dtype, packed=plan.text.packed, parked=plan.text.parked)

    def transformer(name: str) -> Transformer:
        with (
            spent.stage(name, f"loading the {name.replace('_', ' ')}"),
            Checkpoint(folder / name, device) as checkpoint,
        ):
            loaded = Transformer(shape, checkpoint, tier, kernels, dtype, small)
            settle(device)
            return loaded

    branches = Branches(transformer("transformer"), transformer("unconditional_transformer"))
    with spent.stage("decoder", "loading the image decoder"):
        decoder = Decoder(folder / "vae", device, dtype, fused=triton)
    try:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError, TypeError) as error:
        raise LoadError(
            f"{folder}/scheduler cannot be loaded as the scheduler ({error}); fetch the repository again"
        ) from error
    if scheduler.config.stochastic_sampling:
        raise LoadError(f"{folder}/scheduler samples stochastically; the fast engine does not: take engine reference")
    if device.type == "cuda":
        # What converting the weights left behind: whole again before pictures take their share.
        torch.cuda.empty_cache()
    return _Loaded(device, tokenizer, encoder, branches, decoder, scheduler, plan)


def _why_plain(gpu: Gpu | None) -> str | None:
    """Why the kernels' plain twins are used, and said so if it is a GPU that has to do with them."""
    if gpu is None:
        return "a CPU runs no others"
    if why := caches.why_not():
        log.warning("plain kernels", why=why, cost="slower, and more memory than the sums before loading count")
    return why


def _kernels(dtype: torch.dtype, *, triton: bool) -> Kernels:
    if not triton:
        return PlainKernels(dtype)
    from worker.engine.kernels.triton import TritonKernels  # noqa: PLC0415 - wants Triton and a GPU

    return TritonKernels(dtype)


def _gpu(device: torch.device) -> Gpu | None:
    if device.type != "cuda":
        return None
    return Gpu(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def _given(loaded: _Loaded, request: GenerationRequest, ids: list[int]) -> Given:
    grid, device = _grid(request), loaded.device
    plan = schedule(loaded.scheduler, sampling(request), request.width, request.height)
    channels = loaded.branches.conditional.shape.in_channels
    # Drawn on the CPU, so that a seed means the same noise on every device.
    noise = torch.randn((1, grid[0] * grid[1], channels), generator=torch.Generator("cpu").manual_seed(request.seed))
    return Given(
        conditional=loaded.branches.conditional.condition(loaded.encoder(ids), grid, plan.times),
        unconditional=loaded.branches.unconditional.condition(None, grid, plan.times) if plan.guided else None,
        schedule=plan,
        latents=noise[0].to(device),
    )


def _grid(request: GenerationRequest) -> tuple[int, int]:
    return request.height // PIXELS_PER_TOKEN, request.width // PIXELS_PER_TOKEN
