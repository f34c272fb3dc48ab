"""From a rendered image to the file that is delivered: its metadata, its bytes, their digest.

Runs in a thread of its own while the next image is rendered.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version

from PIL.Image import Image

from worker import blocked, formats
from worker.contract import GenerationRequest, Metadata, Preset
from worker.engine import Description


@dataclass(frozen=True, slots=True)
class Picture:
    """A file of the asked size and format. `sha256` in hexadecimal, `suspicion` by `worker.blocked`."""

    data: bytes
    sha256: str
    suspicion: str


def encode(
    image: Image,
    request: GenerationRequest,
    made_by: Description,
    blocked_share: float = blocked.SHARE,
    metadata: Metadata = Metadata.ALL,
) -> Picture:
    """The same image, request and description, the same bytes."""
    data = formats.encode(image, about(request, made_by, metadata), request.format, request.quality)
    return Picture(
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        suspicion=blocked.suspicion(image, blocked_share),
    )


def about(request: GenerationRequest, made_by: Description, metadata: Metadata = Metadata.ALL) -> formats.About:
    """What the file says of itself: a line for people, and a record for programs (docs/metadata.md)."""
    said = {"Comment": made_by.notice} if made_by.notice else {}
    if metadata is Metadata.NONE:
        return formats.About(said)
    made = f"letterpress {version('letterpress')}"
    said |= {"Software": made, "Source": f"{made_by.model}, seed {request.seed}, {_sampler(request)}"}
    record = {
        **request.model_dump(mode="json", exclude_none=True, exclude={"prompt", "caption", "format", "quality"}),
        **({} if request.steps else {"preset": request.preset or Preset.DEFAULT_20}),
        "model": made_by.model,
        "tier": made_by.tier,
        "engine": made_by.engine,
        "software": made,
    }
    shown: dict[str, object] = {}
    if metadata is Metadata.ALL:
        shown = request.model_dump(mode="json", exclude_none=True, include={"prompt", "caption"})
    return formats.About(said, settings=record, shown=shown)


def _sampler(request: GenerationRequest) -> str:
    sampler = f"steps {request.steps}" if request.steps else f"preset {request.preset or Preset.DEFAULT_20}"
    if request.guidance is not None:
        sampler += f", guidance {' '.join(f'{entry:g}' for entry in request.guidance)}"
    for name, value in (("mu", request.mu), ("std", request.std)):
        sampler += "" if value is None else f", {name} {value:g}"
    return sampler
