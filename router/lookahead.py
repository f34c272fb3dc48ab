"""When a running generation will end, so that the next job meets its worker just before that and no earlier.

Pure: what the events said and when, in seconds of one monotonic clock. A worker has a second place so that
text encoding, image encoding and the network hide behind denoising; filling it earlier than that would bind a
job to a worker while another may be free sooner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from worker.contract import Accepted, Failed, Finished, Started, Step

PLACES = 2
"""Of a worker: one generation runs, one more is accepted."""
AT_ONCE_S = 0.001
"""Steps that are told closer together than this were made before, and kept for whoever joins."""
TAIL_WEIGHT = 0.3
"""Of the newest image, in the running mean of what comes after the last step."""


@dataclass(frozen=True, slots=True)
class Course:
    """How far one generation is, as its events told."""

    steps: int
    started_at: float
    step: int = 0
    step_at: float = 0.0
    base: int = 0
    base_at: float = 0.0
    """The step that the pace is measured from. Not the start: text encoding comes before the first step."""

    def stepped(self, step: int, now: float) -> Self:
        # A stream that was joined late begins with all that has happened, at once: no pace is told by that.
        if self.step == 0 or now - self.step_at < AT_ONCE_S:
            return replace(self, step=step, step_at=now, base=step, base_at=now)
        return replace(self, step=step, step_at=now)

    @property
    def step_s(self) -> float | None:
        """Seconds a step, measured; None while there is nothing to measure by."""
        if self.step > self.base:
            return (self.step_at - self.base_at) / (self.step - self.base)
        # One step alone includes the text's encoding. It is no measure of others, but if there are none, of itself.
        return self.step_at - self.started_at if self.step == self.steps == 1 else None


def after(course: Course | None, event: Accepted | Started | Step | Finished | Failed, now: float) -> Course | None:
    """The course after one more event; None while the generation does not run."""
    match event:
        case Started():
            return course or Course(event.steps, now)
        case Step():
            known = course or Course(event.steps, now)
            return known if event.step <= known.step else known.stepped(event.step, now)
        case Accepted() | Finished() | Failed():
            return course


def ends_in_s(course: Course, tail_s: float, now: float) -> float | None:
    """Seconds until the generation ends; None if nothing can be told yet.

    `tail_s` is what comes after the last step (decoding, and what the way adds). Steps that were not seen are not
    believed: a worker that hangs in its third step is never about to end, however long ago the second was.
    """
    step_s = course.step_s
    if step_s is None:
        return None
    if course.step >= course.steps:
        return max(0.0, course.step_at + tail_s - now)
    after_this = (course.steps - course.step - 1) * step_s + tail_s
    return after_this + max(0.0, course.step_at + step_s - now)


def may_open(left_s: float | None, ahead_s: float) -> bool:
    """Whether the second place is open: `ahead_s` before the end that is predicted, never if that is 0."""
    return ahead_s > 0 and left_s is not None and left_s <= ahead_s


@dataclass(frozen=True, slots=True)
class Tails:
    """What came after the last step on one worker, by the image's pixels; a running mean in seconds."""

    by_pixels: Mapping[int, float] = field(default_factory=dict)

    def of(self, pixels: int) -> float:
        """The measured one, or the nearest size's; 0 before the first image, which opens a place too early at worst."""
        if not self.by_pixels:
            return 0.0
        return self.by_pixels[min(self.by_pixels, key=lambda known: abs(known - pixels))]

    def with_one(self, pixels: int, tail_s: float) -> Self:
        known = self.by_pixels.get(pixels, tail_s)
        return replace(self, by_pixels={**self.by_pixels, pixels: known + TAIL_WEIGHT * (tail_s - known)})
