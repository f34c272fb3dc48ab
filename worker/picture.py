"""From a rendered image to the file that is delivered: its metadata, its bytes, their digest.

Runs in a thread of its own while the next image is rendered.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version

from PIL.Image import Image

from worker import blocked, formats
from worker.contract import GenerationRequest, Preset
from worker.engine import Description


@dataclass(frozen=True, slots=True)
class Picture:
    """A file of the asked size and format. `sha256` in hexadecimal, `suspicion` by `worker.blocked`."""

    data: bytes
    sha256: str
    suspicion: str


def encode(
    image: Image, request: GenerationRequest, made_by: Description, blocked_share: float = blocked.SHARE
) -> Picture:
    """The same image, request and description, the same bytes."""
    data = formats.encode(image, about(request, made_by), request.format, request.quality)
    return Picture(
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        suspicion=blocked.suspicion(image, blocked_share),
    )


def about(request: GenerationRequest, made_by: Description) -> dict[str, str]:
    """What the file says of itself. Not the prompt: a picture is shown to more people than its prompt."""
    sampler = f"steps {request.steps}" if request.steps else f"preset {request.preset or Preset.DEFAULT_20}"
    if request.guidance is not None:
        sampler += f", guidance {' '.join(f'{entry:g}' for entry in request.guidance)}"
    for name, value in (("mu", request.mu), ("std", request.std)):
        sampler += "" if value is None else f", {name} {value:g}"
    said = {
        "Software": f"letterpress {version('letterpress')}",
        "Source": f"{made_by.model}, seed {request.seed}, {sampler}",
    }
    return {"Comment": made_by.notice, **said} if made_by.notice else said
