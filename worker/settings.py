"""What a worker is told by its environment (`LETTERPRESS_WORKER_*`), checked before anything heavy loads.

The bearer token comes by file only: an environment or an argument list can be read by others. The
hub's token is none of ours: `huggingface_hub` reads `HF_TOKEN` where it needs it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.contract import MAX_ASPECT, MAX_SIDE, MIN_SIDE, SIDE_STEP, Metadata, Tier

PREFIX = "LETTERPRESS_WORKER_"
TINY = "tiny"
TOKEN_MIN_CHARS = 16


class SettingsError(Exception):
    """The environment does not describe a worker; the message names each variable and what it should be."""


class EngineName(StrEnum):
    FAST = "fast"  # the same mathematics, reordered
    REFERENCE = "reference"  # diffusers' own pipeline, untouched


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    JSON = "json"  # one object a line
    CONSOLE = "console"  # for a person's eyes


def default_cache_dir() -> Path:
    """The worker's folder below the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "letterpress" / "worker"


class EngineSettings(BaseSettings):
    """What every way of running a worker is told. Durations are seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    model: str = TINY
    """`tiny`, a hub repository (`owner/name`), or a folder in diffusers' layout."""
    engine: EngineName = EngineName.FAST
    tier: Tier = Tier.EXACT
    """The number format of the fast engine's products: `exact`, `nf4`, `fp8`, `fp8-attention` or `int8`."""
    warm_sizes: Annotated[tuple[tuple[int, int], ...], NoDecode] = ((1024, 1024),)
    """`1024x1024,512x512`: made once on a GPU before the worker is ready. The largest has to fit into its memory."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")] = "auto"
    """`auto` is the first GPU if there is one. The tiny model runs anywhere, the real one needs a GPU."""
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of one CPU operation; torch takes all cores if nothing is said. Say 1 where workers share a CPU."""
    cache_dir: Path = Field(default_factory=default_cache_dir)
    """Where the tiny repository is built and a yes to a licence is written down; workers share it."""
    accept_license: bool = False
    """A yes to the licence of `model`, without which gated weights are not downloaded."""
    keep_finished_s: Annotated[float, Field(gt=0)] = 600.0
    drain_grace_s: Annotated[float, Field(ge=0)] = 30.0
    """After SIGTERM: how long a generation that is accepted may still wait to start. What runs is finished
    in any case, so whoever stops the worker allows for this and one generation."""
    stall_s: Annotated[float, Field(gt=0)] = 300.0
    """How long text encoding, one step, decoding or writing a file may take before the worker says that it hangs,
    breaks and ends. Ten times what the slowest card takes for the largest image."""
    load_stall_s: Annotated[float, Field(gt=0)] = 3600.0
    """The same while it loads, where a download is one stage."""
    blocked_share: Annotated[float, Field(ge=0, le=1)] = 0.8
    """How much of a picture must be one grey for the worker to suspect that the weights refused to draw it (see
    `worker.blocked`); 0 suspects nothing."""
    metadata: Metadata = Metadata.ALL
    """What each file says of how it was made: `all`, `settings` (without prompt and caption) or `none`."""
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.JSON

    @field_validator("model")
    @classmethod
    def _model_is_one_of_three(cls, value: str) -> str:
        if value == TINY or is_folder(value) or re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            return value
        raise ValueError(f"{value!r} is none of: {TINY}, a hub repository (owner/name), a folder (/…, ./… or ~/…)")

    @field_validator("warm_sizes", mode="before")
    @classmethod
    def _sizes_are_read(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        sizes = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in value.split(",") if part.strip()]
        if not all(sizes):
            raise ValueError(f"{value!r} is not a list of sizes such as 1024x1024,512x512")
        return tuple((int(size[1]), int(size[2])) for size in sizes if size)

    @field_validator("warm_sizes")
    @classmethod
    def _sizes_can_be_made(cls, value: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        for width, height in value:
            if any(not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_STEP for side in (width, height)):
                raise ValueError(f"{width}x{height}: sides are multiples of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"{width}x{height}: is longer than {MAX_ASPECT:g}:1")
        return value

    @model_validator(mode="after")
    def _reference_is_exact(self) -> Self:
        if self.engine is EngineName.REFERENCE and self.tier is not Tier.EXACT:
            raise ValueError(
                f"{PREFIX}TIER: {self.tier} is the fast engine's; engine {self.engine} has the weights' own arithmetic "
                f"({Tier.EXACT}) alone: leave the tier out, or take engine {EngineName.FAST}"
            )
        return self

    @classmethod
    def from_environment(cls) -> Self:
        """Settings from this process's environment; SettingsError names every variable that is wrong or unknown."""
        known = {PREFIX + name.upper() for name in cls.model_fields}
        unknown = sorted({name.upper() for name in os.environ if name.upper().startswith(PREFIX)} - known)
        if unknown:
            hint = f"; the token comes by file: set {PREFIX}TOKEN_FILE" if PREFIX + "TOKEN" in unknown else ""
            raise SettingsError(f"{', '.join(unknown)}: no such setting{hint}. There are: {', '.join(sorted(known))}")
        try:
            return cls()
        except ValidationError as error:
            # Not from it: the cause would quote values.
            raise SettingsError("; ".join(_said(each) for each in error.errors())) from None


class Settings(EngineSettings):
    """A worker that serves HTTP."""

    balanced: bool = False
    """RunPod's load balancer stands before this worker: it may listen to the network, and the worker's token comes
    in a header of its own, because `Authorization` is the balancer's (see `worker.app`)."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8100
    """0 takes a free one; the log says which."""
    token_file: Path

    @field_validator("host")
    @classmethod
    def _host_is_loopback(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("balanced"):
            return value
        try:
            loopback = value == "localhost" or ipaddress.ip_address(value).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError(
                f"{value!r} is not a loopback address; a worker never listens to the network: "
                f"reach it from elsewhere by an SSH forward ({PREFIX}BALANCED is for RunPod's load balancer)"
            )
        return value

    def read_token(self) -> str:
        """The bearer token; SettingsError if the file is missing, too open, or holds something else."""
        path = self.token_file
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{PREFIX}TOKEN_FILE: {path} cannot be read ({error})") from error
        if mode & 0o077:
            raise SettingsError(f"{PREFIX}TOKEN_FILE: {path} can be read by others; chmod 600 {path}")
        if len(token) < TOKEN_MIN_CHARS or not re.fullmatch(r"[!-~]+", token):
            raise SettingsError(
                f"{PREFIX}TOKEN_FILE: {path} must hold one line of at least {TOKEN_MIN_CHARS} visible ASCII characters"
            )
        return token


class ServerlessSettings(EngineSettings):
    """A worker behind RunPod's queue."""

    concurrency: Annotated[int, Field(ge=1, le=2)] = 1
    """Jobs taken at a time. 2 hides text encoding and delivery behind the running image, and takes a job from the
    queue that an idle worker could have begun."""
    max_inline_bytes: Annotated[int, Field(ge=1_000, le=20_000_000)] = 9_500_000
    """Of an image in an answer, as base64. RunPod carries 10 MB (`/runsync`: 20 MB), other fields included."""
    gpu_memory_gib: Annotated[float, Field(ge=0)] | None = None
    """A GPU with less is refused before anything is downloaded. Unset: what the tier wants at 1024x1024."""


def _said(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    # One about several settings together has no place, and names them itself.
    return f"{PREFIX}{str(error['loc'][0]).upper()}: {message}" if error["loc"] else message


def is_folder(model: str) -> bool:
    """Whether `model` is spelled as a path: a hub repository never begins like one."""
    return model.startswith(("/", "./", "../", "~"))
