"""Where the configured weights lie on this machine: built (tiny), given (a folder) or fetched (the hub).

Everything that can be wrong with them before they are loaded is told here, in words that say what to
do; loading them is the engine's.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx2  # what huggingface_hub speaks with
from huggingface_hub import constants, errors

from worker import tiny
from worker.engine import LoadError, OnStage
from worker.settings import TINY, is_folder
from worker.untyped import diffusers

PIPELINE = "Ideogram4Pipeline"
INDEX = "model_index.json"


def locate(model: str, cache: Path, on_stage: OnStage) -> Path:
    """The folder that holds `model`, in diffusers' layout; LoadError says what is wrong with it."""
    if model == TINY:
        on_stage("building the tiny model, once" if not tiny.path(cache).is_dir() else "finding the tiny model")
        return tiny.ensure(cache)
    if is_folder(model):
        return _checked(Path(model).expanduser().resolve(), model)
    on_stage(f"downloading {model}, or finding it in the hub's cache")
    return _checked(_fetched(model), model)


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
    return folder


def _fetched(repository: str) -> Path:
    try:
        return Path(diffusers.Ideogram4Pipeline.download(repository))
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise LoadError(_explained(repository, error)) from error


def _explained(repository: str, error: BaseException) -> str:
    # diffusers answers a refusal with "not cached locally"; the refusal itself is the cause of that.
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    page = f"{constants.ENDPOINT}/{repository}"
    for cause in causes:
        match cause:
            case errors.GatedRepoError():
                return (
                    f"model {repository} is gated: accept its licence on {page} with your account, make a read token, "
                    "and give it to the worker as HF_TOKEN"
                )
            case errors.RepositoryNotFoundError():
                return (
                    f"model {repository}: the hub knows no such repository, or does not show it to you; "
                    f"check {page}, and HF_TOKEN if it is private or gated"
                )
            case errors.HfHubHTTPError() if cause.response.status_code in {401, 403}:
                return f"model {repository}: the hub refused HF_TOKEN; make a new read token, and check {page}"
    return f"model {repository} could not be fetched and is not in the hub's cache: {causes[-1]}; see {page}"
