"""Which job a worker gets next: whose turn it is, and what a worker can make. Values only; the store carries it out.

Jobs that wait lie in *lanes*: one for each API key and kind of need. So a choice looks at the lanes, of which
there are few, and never at the jobs behind their heads: fifty thousand of one key cost another key nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from worker.contract import MAX_PIXELS, GenerationRequest, Preset

PIXEL_CLASS = 512 * 512
"""Sizes of up to so many pixels more share a lane: sixteen classes up to 2048x2048."""
_STEPS = {Preset.QUALITY_48: 48, Preset.DEFAULT_20: 20, Preset.TURBO_12: 12}


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a job is wanted, besides the image itself.

    Among its key's jobs one of higher `priority` goes first. `deadline` (milliseconds since the epoch) is the last
    moment at which an attempt may begin. `tier` and `model` are what a worker must say of itself; None: any.
    """

    priority: int = 0
    deadline: int | None = None
    tier: str | None = None
    model: str | None = None


ANY_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Capability:
    """What a worker has said that it can do; None as long as it has not."""

    tier: str | None = None
    model: str | None = None
    max_pixels: int | None = None

    def largest(self, tier: str | None, model: str | None) -> int:
        """Pixels of the largest image that it makes of this tier and model (None or empty: any); 0 if none."""
        if (tier and tier != self.tier) or (model and model != self.model):
            return 0
        return MAX_PIXELS if self.max_pixels is None else self.max_pixels


@dataclass(frozen=True, slots=True)
class Spill:
    """Leave to take a job of another pool, if it is of at most `max_work` (`work_of`), and only while `idle_kept` of
    `idle_others`, by name, hold no job: whoever gives it knows only what its own process drives."""

    pool: str
    max_work: int
    idle_others: tuple[str, ...] = ()
    idle_kept: int = 0


def pixels_of(request: GenerationRequest) -> int:
    return request.width * request.height


def work_of(request: GenerationRequest) -> int:
    """How much there is to do, in pixel-steps: a worker's time for a job grows with it."""
    return pixels_of(request) * steps_of(request)


def steps_of(request: GenerationRequest) -> int:
    return request.steps or _STEPS[request.preset or Preset.DEFAULT_20]


@dataclass(frozen=True, slots=True)
class Lane:
    """Waiting jobs of one key that want the same of a worker. Classes are upper bounds: of pixels, and log2 of work."""

    api_key_id: str
    pixel_class: int
    work_class: int
    tier: str
    model: str

    @classmethod
    def of(cls, api_key_id: str, request: GenerationRequest, terms: Terms) -> Lane:
        return cls(
            api_key_id,
            -(-pixels_of(request) // PIXEL_CLASS),
            work_of(request).bit_length(),
            terms.tier or "",
            terms.model or "",
        )

    @classmethod
    def parse(cls, name: str) -> Lane:
        key, pixel_class, work_class, tier, model = name.split("/", 4)
        return cls(key, int(pixel_class), int(work_class), tier, model)

    @property
    def pixels(self) -> tuple[int, int]:
        """Its images have more than the first, and at most the second."""
        return (self.pixel_class - 1) * PIXEL_CLASS, self.pixel_class * PIXEL_CLASS

    @property
    def name(self) -> str:
        return f"{self.api_key_id}/{self.pixel_class:02}/{self.work_class:02}/{self.tier}/{self.model}"

    def fits(self, worker: Capability, max_work: int | None) -> bool:
        """Whether the worker can make a job of this lane; at a class's border, perhaps not every one of them."""
        able = worker.largest(self.tier, self.model) > self.pixels[0]
        return able and (max_work is None or 2 ** (self.work_class - 1) <= max_work)


def fair_order(keys: Iterable[str], turns: Mapping[str, int], at_limit: Collection[str]) -> list[str]:
    """The keys in the order in which they should be served: whoever's last turn is longest ago comes first.

    `turns` numbers each key's last turn; a key that never had one goes first. Those in `at_limit` run as many jobs
    as they may. An idle key saves no turns up: when it comes back, it gets one before the others, not many.
    """
    return sorted((key for key in set(keys) if key not in at_limit), key=lambda key: (turns.get(key, 0), key))
