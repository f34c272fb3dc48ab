"""What a fleet has made itself: images and busy seconds by card and tier, kept beside the stack's placement.

`letterpress watch` and `deploy` add what the router counts; `infra.costs.gpus.calibrated` makes speeds of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from infra.costs.gpus import Fleet, GpuModel, Made
from infra.files import replace_file
from infra.paths import StackPaths
from infra.planning.placement import Placement
from infra.planning.program import worker_names
from infra.stack import StackDescription
from worker.contract import Tier

COUNTER = re.compile(r'^letterpress_worker_(busy_seconds|images)_total\{worker="([^"]+)"\} (\S+)$', re.MULTILINE)


class Figure(BaseModel):
    """One card in one tier."""

    model_config = ConfigDict(frozen=True)

    gpu: GpuModel
    tier: Tier
    images: int
    busy_s: float


_JSON = TypeAdapter(tuple[Figure, ...])


def read_figures(paths: StackPaths) -> Fleet:
    """None of them if there are none yet; a file that cannot be read is none, for figures only sharpen a guess."""
    try:
        kept = _JSON.validate_json(_file(paths).read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}
    return {(each.gpu, each.tier): Made(each.images, each.busy_s) for each in kept}


def keep_figures(paths: StackPaths, fleet: Fleet) -> None:
    kept = tuple(Figure(gpu=gpu, tier=tier, images=m.images, busy_s=m.busy_s) for (gpu, tier), m in fleet.items())
    replace_file(_file(paths), _JSON.dump_json(kept, indent=2) + b"\n")


def counted(metrics: str) -> Mapping[str, Made]:
    """By worker, from the router's metrics (Prometheus' text format)."""
    found: dict[str, dict[str, float]] = {}
    for what, worker, value in COUNTER.findall(metrics):
        found.setdefault(worker, {})[what] = float(value)
    return {name: Made(int(each.get("images", 0)), each.get("busy_seconds", 0.0)) for name, each in found.items()}


def by_card(made: Mapping[str, Made], description: StackDescription, placement: Placement) -> Fleet:
    """What the stack's present workers have made, by card and tier."""
    fleet: dict[tuple[GpuModel, Tier], Made] = {}
    for placed in placement.machines:
        pool = description.pools.get(placed.machine.rpartition("-")[0])
        card = next((model for model in GpuModel if model == placed.offer.gpu), None)
        if pool is None or card is None:
            continue
        for worker in worker_names(placed):
            if one := made.get(worker):
                before = fleet.get((card, pool.tier), Made(0, 0.0))
                fleet[card, pool.tier] = Made(before.images + one.images, before.busy_s + one.busy_s)
    return fleet


def _file(paths: StackPaths) -> Path:
    return paths.root / "figures.json"
