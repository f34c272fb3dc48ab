"""`make bench-gpu`: the engine beside the pipeline as others run it, on one card, in one run.

    python -m tests.gpu.bench [--part rows|batching|served|compiled] [--json FILE]

Random weights of the true size: right for speed, memory and exactness, and silent about picture quality. A
figure holds for the card that it names; what counts are the ratios of one run. The parts add to one JSON
file, which `tests.gpu.report` turns into the tables of docs/benchmarks.md; what is there is not measured again
by `--part all`. A file of another card or of other versions is refused.

`--rehearse` goes through `served` and `compiled` with the tiny weights on a CPU, in a minute: a card's time is not to
be lost to a bench that does not run to its end. Its figures are of nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tests.gpu import repository, rivals, served
from tests.gpu.report import AGAIN, COMPILED, COUNTED, PEAK, foreign
from tests.gpu.rivals import seconds
from tests.gpu.roofline import groups, step_flops
from worker import tiny
from worker.contract import GenerationRequest, Tier
from worker.engine import LoadError, memory, transformer
from worker.engine.denoise import Branches, Given, velocity_at
from worker.engine.fast import FastEngine
from worker.engine.kernels import Heads, Rope
from worker.engine.tier import Gpu, why_not
from worker.engine.transformer import Conditioning
from worker.presets import free

PROMPT = "a letterpress print shop at night, brass type and ink on every table, " * 7
STEPS = (12, 20, 25, 48)
SEEDS = (7, 8)
Row = dict[str, Any]
Walk = list[tuple[torch.Tensor, torch.Tensor]]
"""Latents before each step, and the velocity there."""
TIERS = (Tier.EXACT, Tier.FP8, Tier.FP8_ATTENTION, Tier.INT8, Tier.NF4)


class Bench:
    """What has been measured so far, written down after every row."""

    def __init__(self, path: Path, work: Path, *, rehearsed: bool) -> None:
        self._path = path
        self.cache = work / "cache"
        self.device = torch.device("cpu" if rehearsed else "cuda:0")
        self.side = 256 if rehearsed else 1024
        self.found: Row = json.loads(path.read_text()) if path.exists() else {}
        self._begun = time.monotonic()
        self._card = "none: a rehearsal on a CPU" if rehearsed else torch.cuda.get_device_name()
        versions = {name: version(name) for name in ("torch", "diffusers", "transformers")}
        if other := foreign(self.found, self._card, versions):
            sys.exit(f"{path}: {other}; begin another file (make bench-gpu JSON=...), or remove this one")
        self.found |= {"card": self._card, "versions": versions}
        self.folder = tiny.ensure(self.cache) if rehearsed else self._built(work)

    def _built(self, work: Path) -> Path:
        begun = time.monotonic()
        folder = repository.build(work / "repository", self.cache, self.device)
        self.say(f"the repository is there ({time.monotonic() - begun:.0f} s)")
        return folder

    def add(self, name: str, row: Mapping[str, object]) -> None:
        self.found.setdefault("rows", {})[name] = {"card": self._card} | dict(row)
        self.say(name, json.dumps(row, default=str))
        self._save()

    def keep(self, part: str, found: Row) -> None:
        """What is no row of the table: so far, it may grow."""
        self.found[part] = found | {"card": self._card}
        self._save()

    def wants(self, name: str) -> bool:
        """Whether a row is still to be measured: a run that was cut short goes on where it stopped."""
        return name not in self.found.get("rows", {})

    def _save(self) -> None:
        self._path.write_text(json.dumps(self.found, indent=2))

    def say(self, *words: object) -> None:
        print(f"[{time.monotonic() - self._begun:5.0f} s]", *words, flush=True)


def rows(bench: Bench) -> None:
    theirs = _stock(bench)
    path: Walk = []
    for tier in TIERS:
        _clear()
        if tier is not Tier.EXACT and not bench.wants(_name(tier)):
            continue
        try:
            row = _ours(bench, tier, theirs, path)
        except LoadError as refused:
            bench.say(f"{_name(tier)}: {refused}")
        else:
            bench.add(_name(tier), row)


def _name(tier: Tier) -> str:
    return f"ours, {tier}"


def _stock(bench: Bench) -> dict[int, Image.Image]:
    """The rows of the pipeline; the published script's images, by seed."""
    stock = rivals.script(bench.folder, bench.device)
    # The first call picks algorithms; one step is enough for that.
    stock.image(PROMPT, free(1), 0)
    theirs = {seed: stock.image(PROMPT, free(25), seed) for seed in SEEDS}
    if not bench.wants("tuned stock pipeline"):
        return theirs
    bench.add("published script", _measured(_images(stock), (4, 12, 25), 1))
    rival = rivals.tuned(bench.folder, stock)
    first = seconds(partial(rival.image, PROMPT, free(1), 0))
    other = {seed: rival.image(PROMPT, free(25), seed) for seed in SEEDS}
    row = _measured(_images(rival), (4, *STEPS), 1)
    row |= {"first image, compilation included": first, "psnr": _psnr(theirs, other)}
    bench.add("tuned stock pipeline", row)
    return theirs


def _images(stock: rivals.Stock) -> Callable[[int], object]:
    return lambda steps: stock.image(PROMPT, free(steps), SEEDS[0])


def _ours(bench: Bench, tier: Tier, theirs: Mapping[int, Image.Image], path: Walk) -> Row:
    engine = FastEngine(str(bench.folder), "cuda:0", bench.cache, tier, warm=((1024, 1024),))
    torch.cuda.reset_peak_memory_stats()
    loading = seconds(lambda: engine.load(lambda _: None))
    assert engine._loaded is not None
    branches = engine._loaded.branches
    given = engine.prepare(_request(steps=25)).payload
    assert isinstance(given, Given)
    if tier is Tier.EXACT:
        path.extend(_walked(branches, given))
        if not bench.wants(_name(tier)):
            return dict(bench.found["rows"][_name(tier)])
    counts = (4, *STEPS) if tier in {Tier.EXACT, Tier.FP8, Tier.FP8_ATTENTION} else (4, 25)
    row = _measured(lambda steps: _made(engine, steps=steps), counts, 2)
    row["load and warm-up"] = loading
    if tier is Tier.FP8_ATTENTION and branches.conditional.small is not None:
        row["attention workspace, MiB"] = branches.conditional.small.workspace_bytes / 2**20
    row["largest image, pixels"] = engine._loaded.plan.max_pixels
    row["psnr"] = _psnr(theirs, {seed: _made(engine, steps=25, seed=seed) for seed in SEEDS})
    row["a new prompt length"] = seconds(lambda: _made(engine, steps=1, prompt=PROMPT + "and dust"))
    row["again"] = seconds(lambda: _made(engine, steps=1, prompt=PROMPT + "and dust"))
    if tier is not Tier.EXACT:
        row["error per step"] = _errors(branches, given, path)
    if tier in {Tier.EXACT, Tier.FP8, Tier.FP8_ATTENTION}:
        row["a new size"] = seconds(lambda: _made(engine, steps=1, side=768))
        row["the same size again"] = seconds(lambda: _made(engine, steps=1, side=768))
        for side, steps in ((512, 25), (2048, 4)):
            _made(engine, steps=1, side=side)
            short, long = (seconds(partial(_made, engine, steps=n, side=side)) for n in (1, steps))
            row[f"step at {side}"] = (long - short) / (steps - 1)
        row |= _fullest(engine)
        row["step by kernel group, ms"] = groups(branches, given)
    flops = step_flops(tokens=given.conditional.rope.cos.shape[0], image_tokens=4096)
    row["TFLOP/s"] = flops / row["step"] / 1e12
    return row


def _measured(image: Callable[[int], object], counts: tuple[int, ...], repeats: int) -> Row:
    """Seconds of whole images by steps (the best of `repeats`), and the step that follows from the longest."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    best = {steps: min(seconds(partial(image, steps)) for _ in range(repeats)) for steps in counts}
    least, most = 4, 25
    step = (best[most] - best[least]) / (most - least)
    around = best[most] - most * step
    images = {str(steps): best.get(steps, around + steps * step) for steps in STEPS}
    return {
        "step": step,
        "around the steps": around,
        "image": images,
        "images a minute at 25": 60 / best[most],
        "fitted": [steps for steps in STEPS if steps not in best],
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
    }


def _request(*, steps: int, seed: int = 7, side: int = 1024, prompt: str = PROMPT) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, width=side, height=side, steps=steps, seed=seed)


def _made(engine: FastEngine, *, steps: int, seed: int = 7, side: int = 1024, prompt: str = PROMPT) -> Image.Image:
    prepared = engine.prepare(_request(steps=steps, seed=seed, side=side, prompt=prompt))
    return engine.render(prepared, lambda _: None, lambda: False).image


def _fullest(engine: FastEngine) -> Row:
    """The peak of what the preflight counts, GiB: a 2048x2048 image while the tables of two requests of 100 steps are
    held; beside it, the preflight's own sum without its reserve."""
    assert engine._loaded is not None
    side = 2048
    held = [engine.prepare(_request(steps=memory.STEPS, side=side)) for _ in range(memory.REQUESTS)]
    torch.cuda.reset_peak_memory_stats()
    _made(engine, steps=2, side=side)
    counted = sum(engine._loaded.plan.parts(side * side).values()) - memory.RESERVE
    del held
    peak = torch.cuda.max_memory_allocated()
    return {PEAK: peak / memory.GIB, COUNTED: counted / memory.GIB}


def _psnr(theirs: Mapping[int, Image.Image], ours: Mapping[int, Image.Image]) -> list[float]:
    """Of whole images, decibels, one a seed."""
    found = []
    for seed, image in theirs.items():
        apart = np.asarray(image).astype(np.float64) - np.asarray(ours[seed]).astype(np.float64)
        found.append(round(10 * float(np.log10(255**2 / max(1e-9, float((apart**2).mean())))), 1))
    return found


@torch.no_grad()
def _walked(branches: Branches, given: Given) -> Walk:
    """The exact tier's latents before each step, and its velocity there."""
    latents, path = given.latents, []
    for step in range(given.schedule.steps):
        velocity = velocity_at(branches, given, latents, step)
        path.append((latents.cpu(), velocity.cpu()))
        latents = latents - given.schedule.deltas[step] * velocity
    return path


@torch.no_grad()
def _errors(branches: Branches, given: Given, path: Walk) -> list[float]:
    """Of the velocity at the exact tier's own latents, step by step, relative."""
    found = []
    for step, (latents, velocity) in enumerate(path):
        ours = velocity_at(branches, given, latents.to(given.latents.device), step).cpu()
        found.append(round(float((ours - velocity).norm() / velocity.norm()), 5))
    return found


@torch.no_grad()
def _batching(bench: Bench) -> Row:
    """What a batch of four would gain at 512x512, in the FP8 tier: seconds of a step for the four of them.

    The engine makes single images. A batch is had by giving it four pictures' rows as one picture's, and
    keeping their attention apart.
    """
    engine = FastEngine(str(bench.folder), "cuda:0", bench.cache, Tier.FP8, warm=())
    engine.load(lambda _: None)
    assert engine._loaded is not None
    branches = engine._loaded.branches
    single = engine.prepare(_request(steps=4, side=512)).payload
    assert isinstance(single, Given)
    together = Given(
        _four(single.conditional),
        _four(single.unconditional) if single.unconditional else None,
        single.schedule,
        single.latents.repeat(4, 1),
    )

    alone, alone_replayed = _timed(branches, single, 4)
    with mock.patch.object(transformer, "attend", _apart):
        batched, batched_replayed = _timed(branches, together, 1)
    return {
        "four alone, s a step": alone,
        "a batch of four": batched,
        "gain": alone / batched - 1,
        "four alone, replayed": alone_replayed,
        "a batch of four, replayed": batched_replayed,
        "gain, replayed": alone_replayed / batched_replayed - 1,
    }


def _timed(branches: Branches, given: Given, times: int) -> tuple[float, float]:
    """Seconds of `times` steps, launched from Python as the engine does it, and replayed from a graph: the card's own
    time, whatever the host's processor takes to launch."""

    def launched() -> None:
        for _ in range(times):
            velocity_at(branches, given, given.latents, 0)

    launched()
    by_hand = min(seconds(launched) for _ in range(5))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        velocity_at(branches, given, given.latents, 0)

    def replayed() -> None:
        for _ in range(times):
            graph.replay()

    replayed()
    return by_hand, min(seconds(replayed) for _ in range(5))


def _four(given: Conditioning) -> Conditioning:
    """Four pictures' rows as one's. Text and image are not side by side within each, which costs the same."""
    rope = Rope(given.rope.cos.repeat(4, 1), given.rope.sin.repeat(4, 1))
    return Conditioning(None if given.text is None else given.text.repeat(4, 1), rope, given.blocks, given.final)


def _apart(heads: Heads) -> torch.Tensor:
    def parted(part: torch.Tensor) -> torch.Tensor:
        _, count, rows, size = part.shape
        return part[0].reshape(count, 4, rows // 4, size).transpose(0, 1)

    query, key, value = (parted(part) for part in (heads.query, heads.key, heads.value))
    seen = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, False)[0]
    joined: torch.Tensor = seen.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
    return joined


def _clear() -> None:
    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()


def compiled(bench: Bench) -> None:
    """The script with its own compile advice; the script again beside it, for the ratio."""
    stock = rivals.script(bench.folder, bench.device, bench.side)
    stock.image(PROMPT, free(1), 0)
    bench.add(AGAIN, _measured(_images(stock), (4, 25), 1))
    made = rivals.compiled(stock)
    first = seconds(lambda: made.image(PROMPT, free(2), 0))
    made.image(PROMPT, free(2), 0)
    bench.add(
        COMPILED,
        _measured(_images(made), (4, 25), 1) | {"first image, compilation included": first},
    )


def _fastest(*, rehearsed: bool) -> Tier:
    gpu = None if rehearsed else Gpu(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    return next(tier for tier in (Tier.FP8_ATTENTION, Tier.FP8, Tier.INT8, Tier.EXACT) if why_not(tier, gpu) is None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["rows", "batching", "served", "compiled", "all"], default="all")
    parser.add_argument("--served-tier", type=Tier, help="default: the fastest that the card can run")
    parser.add_argument("--requests", type=int, default=served.REQUESTS, help="that are served back to back")
    parser.add_argument("--json", type=Path, default=Path("bench-gpu.json"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "letterpress-bench-gpu")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU: does it run?")
    asked = parser.parse_args()
    if asked.rehearse and asked.part not in {"served", "compiled"}:
        parser.error("only `served` and `compiled` can be rehearsed")
    bench = Bench(asked.json, asked.work, rehearsed=asked.rehearse)
    tier = asked.served_tier or _fastest(rehearsed=asked.rehearse)
    serving = f"served, {tier}"

    def due(part: str, *, there: bool) -> bool:
        return asked.part == part or (asked.part == "all" and not there)

    if due("rows", there=False):
        rows(bench)
    if due("batching", there="batching" in bench.found):
        _clear()
        bench.keep("batching", _batching(bench))
    if due("served", there="second start, by stage" in bench.found.get(serving, {})):
        _clear()
        what = served.Asked(bench.folder, bench.cache, tier, bench.device, bench.side, asked.requests)
        served.measure(what, bench.say, partial(bench.keep, serving))
    if due("compiled", there=not bench.wants(COMPILED)):
        _clear()
        compiled(bench)


if __name__ == "__main__":
    main()
