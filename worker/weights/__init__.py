"""Where the configured weights lie on this machine: built (tiny), given (a folder) or fetched (the hub).

Everything that can be wrong with them before they are loaded is told here, in words that say what to
do; loading them is the engine's. `catalogue` names the repositories that are known and their licences,
`licences` keeps who accepted them, `cache` looks at what lies here, `hub` asks the hub, `pull` downloads.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from safetensors import SafetensorError

from worker.engine import LoadError, OnStage
from worker.settings import TINY, is_folder
from worker.weights import cache
from worker.weights.hub import Listing
from worker.weights.licences import Acceptance
from worker.weights.pull import pull

PIPELINE = "Ideogram4Pipeline"
INDEX = cache.INDEX


def locate(model: str, cache_dir: Path, on_stage: OnStage) -> Path:
    """The folder that holds `model`, in diffusers' layout; LoadError says what is wrong with it."""
    if model == TINY:
        from worker import tiny  # noqa: PLC0415 - imports torch: seconds, and `letterpress weights` needs none of it

        on_stage("building the tiny model, once" if not tiny.path(cache_dir).is_dir() else "finding the tiny model")
        try:
            return tiny.ensure(cache_dir)
        except (OSError, SafetensorError) as error:
            raise LoadError(
                f"the tiny model cannot be built in {cache_dir}: {error}; make room there, or name another folder "
                "as LETTERPRESS_WORKER_CACHE_DIR"
            ) from error
    if is_folder(model):
        return _checked(Path(model).expanduser().resolve(), model)
    on_stage(f"looking for {model} in the hub's cache")
    if (found := cache.find(model)) and found.whole:
        return _checked(found.folder, model)
    return _checked(pull(model, cache_dir, _Stages(model, on_stage), served=True).folder, model)


def _checked(folder: Path, model: str) -> Path:
    index = folder / INDEX
    try:
        described = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing = folder if not folder.is_dir() else index
        raise LoadError(
            f"model {model}: {missing} does not exist; give the folder of a repository in diffusers' layout "
            f"(with a {INDEX}), a hub repository (owner/name), or {TINY}"
        ) from None
    except (OSError, ValueError) as error:
        raise LoadError(f"model {model}: {index} cannot be read ({error}); fetch the repository again") from error
    kind = described.get("_class_name") if isinstance(described, dict) else None
    if kind != PIPELINE:
        raise LoadError(f"model {model}: {index} describes a {kind}, and this worker serves {PIPELINE} only")
    if lacking := sorted(cache.missing(folder)):
        raise LoadError(f"model {model}: {folder} lacks {', '.join(lacking)}; fetch the repository again")
    return folder


class _Stages:
    """A download as the stages of a worker that loads: seconds apart, so that a log stays readable."""

    EVERY_S = 5.0

    def __init__(self, model: str, on_stage: OnStage) -> None:
        self._model = model
        self._on_stage = on_stage
        self._done = self._total = 0
        self._said_at = 0.0

    def accepted(self, yes: Acceptance) -> None:
        self._on_stage(f"downloading {self._model}: {yes.licence or 'its licence'} was accepted by {yes.user}")

    def begins(self, listing: Listing, there: int) -> None:
        self._done, self._total = there, listing.bytes
        self._say()

    def advanced(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said_at >= self.EVERY_S:
            self._say()

    def waits(self, why: str) -> None:
        self._on_stage(f"downloading {self._model}: {why}")

    def _say(self) -> None:
        self._said_at = time.monotonic()
        self._on_stage(f"downloading {self._model}: {self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB")
