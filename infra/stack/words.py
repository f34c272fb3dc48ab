"""What settings of a stack file are made of: closed sets, texts that may refer to the environment, ports, sizes.

`${NAME}` in a text stays a reference here; whoever uses the text resolves it then (`resolve`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from infra.stack.description import DescriptionError
from worker.contract import MAX_SIDE, MIN_SIDE, SIDE_STEP

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SIZE = re.compile(r"\d{1,4}x\d{1,4}")
SIDES = {"step": SIDE_STEP, "least": MIN_SIDE, "most": MAX_SIDE}


class CloudName(StrEnum):
    """Clouds that a stack can be on. Each has a module in `infra.clouds` and a line in `infra.provider.site`."""

    LOCAL = "local"
    SPHERON = "spheron"
    RUNPOD = "runpod"
    HOSTS = "hosts"


class Device(StrEnum):
    """What a pool's workers compute on. `auto` is the CPU for tiny weights and a GPU for all others."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


def _references_well_formed(text: str) -> str:
    if "${" in REFERENCE.sub("", text):
        raise PydanticCustomError("reference", "should hold references written as ${NAME}")
    return text


def _reference(text: str) -> str:
    if not REFERENCE.fullmatch(text):
        # Not shown: what stands there may be the secret itself.
        raise PydanticCustomError("secret", "should be a reference to the environment, ${NAME}: no secret stands here")
    return text


def _user(text: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text):
        raise PydanticCustomError("user", "should be a user's name on that machine")
    return text


Text = Annotated[str, StringConstraints(min_length=1), AfterValidator(_references_well_formed)]
"""May hold `${NAME}`; `resolve` puts the environment's value in."""
Reference = Annotated[str, AfterValidator(_reference)]
"""A secret: never in the file, always `${NAME}`."""
User = Annotated[str, AfterValidator(_user)]
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:-]+$")]
Port = Annotated[int, Field(strict=True, ge=1, le=65_535)]


def _size(text: str) -> str:
    sides = [int(side) for side in text.split("x")] if SIZE.fullmatch(text) else []
    if not sides or any(not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_STEP for side in sides):
        raise PydanticCustomError("size", "should be WIDTHxHEIGHT, multiples of {step} from {least} to {most}", SIDES)
    return text


Size = Annotated[str, AfterValidator(_size)]


Dollars = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Described(BaseModel):
    """A part of a stack file: nobody changes it, and a setting that does not exist is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def resolve(text: str, environ: Mapping[str, str], setting: str) -> str:
    """Put the environment's values in place of `${NAME}`; `setting` says in an error where the text stands."""

    def value(match: re.Match[str]) -> str:
        if not environ.get(match[1]):
            raise DescriptionError(f"{setting}: {match[0]} refers to the environment, where {match[1]} is not set")
        return environ[match[1]]

    return REFERENCE.sub(value, text)
