"""The wire contract between whoever wants an image and the worker that makes it.

Only pydantic here: the router and infra import this module without torch. Everything that crosses
the worker's HTTP border is one of these types; behaviour lives in `worker.runner`.

    PUT    /generations/{id}        body GenerationRequest -> a stream of Event, one JSON object a line
    GET    /generations/{id}/image  the finished bytes, for some minutes after the end
    PUT    /generations/{id}?with_image=true
                                    as the first, and `finished` is followed by the image: so many bytes, right behind
                                    its line
    DELETE /generations/{id}        204: cancel between steps; ended, gone and never seen are success too
    GET    /livez                   200 while the process can answer
    GET    /readyz                  WorkerStatus; 200 when ready, otherwise 503
    GET    /ping                    RunPod's load balancer: 200 when ready, 204 while loading, otherwise 503
    GET    /metrics                 Prometheus text

The stream starts with the first event whenever it is asked for, and ends after `finished` or `failed`.
Between events, every HEARTBEAT_S seconds, comes an empty line: whoever hears nothing for a few of those
has lost the worker, and the worker learns that a reader is gone. A reader's going ends nothing; DELETE does.
An image that did not come, or not whole, with the stream that asked for it is fetched as any other.

All but /livez, /readyz and /ping want `Authorization: Bearer <token>`, or `X-Letterpress-Token: <token>`
where a load balancer owns the first. Errors are RFC 9457 problem details (`Problem`, media type
`application/problem+json`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

from worker import captions
from worker.captions import Caption, CaptionError

CONTRACT_VERSION = "1"

MIN_SIDE = 256
MAX_SIDE = 2048
SIDE_STEP = 16
"""Image sides in pixels: multiples of 16 from 256 to 2048, the range of the open weights."""
MAX_PIXELS = MAX_SIDE * MAX_SIDE
MAX_ASPECT = 6.0
"""Longest side over shortest side, at most."""
MAX_STEPS = 100
MAX_GUIDANCE = 30.0
MAX_PROMPT_TOKENS = 2048
"""The text encoder's limit. Only a worker can count tokens, so only it refuses by this number."""
MAX_PROMPT_CHARS = 32_768
"""A bound on the body, far above what 2048 tokens can spell; checked before any tokenizer runs."""
MAX_SEED = 2**31 - 1

EVENTS_MEDIA_TYPE = "application/x-ndjson"
EVENTS_AND_IMAGE_MEDIA_TYPE = "application/vnd.letterpress.events-and-image"
WITH_IMAGE = "with_image"
PROBLEM_MEDIA_TYPE = "application/problem+json"
HEARTBEAT_S = 5.0
"""Seconds between the empty lines of a stream in which nothing happens."""
MAX_BODY_BYTES = 2**20
"""Of any request; four times what the longest prompt can fill."""


class Frozen(BaseModel):
    """A value on the wire: unknown fields are errors, and nobody changes it after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Preset(StrEnum):
    """The maker's sampler presets that need no distilled weights (steps, guidance and noise schedule)."""

    QUALITY_48 = "V4_QUALITY_48"
    DEFAULT_20 = "V4_DEFAULT_20"
    TURBO_12 = "V4_TURBO_12"

    @property
    def speed(self) -> str:
        """Its one word: QUALITY, DEFAULT or TURBO, as the hosted API has it."""
        return self.split("_")[1]

    @classmethod
    def at(cls, speed: str) -> Preset:
        """The preset with this word. Raises ValueError."""
        for preset in cls:
            if preset.speed == speed:
                return preset
        raise ValueError(f"{speed} is none of {', '.join(preset.speed for preset in cls)}")


class ImageFormat(StrEnum):
    """The file that an image is delivered as. PNG loses nothing; the others are a tenth of its bytes."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> MediaType:
        return MEDIA_TYPES[self]


MediaType = Literal["image/png", "image/jpeg", "image/webp"]
MEDIA_TYPES: dict[ImageFormat, MediaType] = {
    ImageFormat.PNG: "image/png",
    ImageFormat.JPEG: "image/jpeg",
    ImageFormat.WEBP: "image/webp",
}


class Tier(StrEnum):
    """In which number format a worker's matrix products are made. Only `exact` and `nf4` change no number."""

    EXACT = "exact"  # the weights' own values in bf16 (float32 on a CPU)
    FP8 = "fp8"  # e4m3 products, one scale a row and one a column; Ada, Hopper and later
    FP8_ATTENTION = "fp8-attention"  # fp8, and attention in e4m3 too; Hopper
    INT8 = "int8"  # W8A8 products, likewise; Ampere's own 8-bit format
    NF4 = "nf4"  # 4-bit weights resident, expanded for each product: the values of `exact`, slower, small


class Metadata(StrEnum):
    """How much a worker's files say of how they were made (docs/metadata.md)."""

    ALL = "all"  # what was asked, the prompt or caption among it
    SETTINGS = "settings"  # all but what the picture was to show
    NONE = "none"  # nothing but that it is noise, if it is


GENERATION_ID = r"^[A-Za-z0-9_-]{1,64}\.[0-9]{1,9}$"
"""`{job}.{attempt}`: a second try at a job is another generation."""

GenerationId = Annotated[str, StringConstraints(pattern=GENERATION_ID)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)]
Side = Annotated[int, Field(strict=True, ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_STEP)]
"""One side of an image in pixels. Numbers are strict: lax mode would make one step of `true`."""
Steps = Annotated[int, Field(strict=True, ge=1, le=MAX_STEPS)]
Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Guidance = Annotated[float, Field(strict=True, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)]
"""How far one step goes beyond what it would draw without the prompt: 1 takes the prompt as it is."""
GuidanceSchedule = Annotated[tuple[Guidance, ...], Field(min_length=1, max_length=MAX_STEPS)]
"""One entry a step, first step first."""
ScheduleMean = Annotated[float, Field(strict=True, ge=-4, le=4, allow_inf_nan=False)]
ScheduleWidth = Annotated[float, Field(strict=True, ge=0.1, le=4, allow_inf_nan=False)]
"""Mean and standard deviation of the logit-normal noise schedule, as for 512x512. The presets stay within 0 to
0.5 and 1.5 to 1.75; what lies outside these bounds puts all steps at one end of the noise."""
EncodingQuality = Annotated[int, Field(strict=True, ge=1, le=100)]
"""Of a lossy file, as its encoder counts: 100 is the best and the largest."""


class GenerationRequest(Frozen):
    """One image, described so fully that the same request makes the same bytes.

    What it shows is a `prompt` or a `caption` (`worker.captions`); a prompt that is a caption in JSON is taken
    as one, and refused if it is a faulty one. `steps` and `preset` exclude one another; with neither, the preset
    is V4_DEFAULT_20. `guidance`, `mu` and `std` replace what `steps` would take, each by itself. `seed` is not
    optional here: whoever accepts a job draws it, so that a second attempt repeats the first. `quality` is for
    the lossy formats; absent, it is the worker's default.
    """

    prompt: Prompt | None = None
    caption: Caption | None = None
    width: Side = 1024
    height: Side = 1024
    steps: Steps | None = None
    preset: Preset | None = None
    guidance: GuidanceSchedule | None = None
    mu: ScheduleMean | None = None
    std: ScheduleWidth | None = None
    seed: Seed
    format: ImageFormat = ImageFormat.PNG
    quality: EncodingQuality | None = None

    @property
    def text(self) -> str:
        """What the text encoder reads: the prompt, or the caption as the maker's guide spells it."""
        caption = self.caption or captions.read(self.prompt or "")
        return caption.spelled() if caption else self.prompt or ""

    @model_validator(mode="after")
    def _shows_something(self) -> GenerationRequest:
        if (self.prompt is None) == (self.caption is None):
            raise ValueError("prompt, caption: give exactly one of them")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt: is blank; say what the image should show")
        try:
            text = self.text
        except CaptionError as error:
            raise ValueError(f"prompt: {error}") from None
        if len(text) > MAX_PROMPT_CHARS:
            raise ValueError(f"caption: has {len(text)} characters when it is spelled; at most {MAX_PROMPT_CHARS}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> GenerationRequest:
        if self.steps is not None and self.preset is not None:
            raise ValueError("steps, preset: give one of them, not both")
        own = [name for name in ("guidance", "mu", "std") if getattr(self, name) is not None]
        if own and self.steps is None:
            raise ValueError(f"{', '.join(own)}: say how many steps with it; a preset has its own")
        if self.guidance is not None and len(self.guidance) != self.steps:
            raise ValueError(f"guidance: has {len(self.guidance)} entries, and there are {self.steps} steps")
        if self.quality is not None and self.format is ImageFormat.PNG:
            raise ValueError("quality: a PNG is never lossy; ask for format jpeg or webp, or leave it out")
        longest, shortest = max(self.width, self.height), min(self.width, self.height)
        if longest > MAX_ASPECT * shortest:
            raise ValueError(
                f"width, height: {self.width}x{self.height} is longer than {MAX_ASPECT:g}:1; "
                "the weights were not made for it"
            )
        return self


class FailureType(StrEnum):
    """Why a generation ended without an image. What is retried is decided by `Failed.retryable`."""

    INVALID_REQUEST = "invalid_request"  # e.g. a prompt over MAX_PROMPT_TOKENS
    TOO_LARGE = "too_large"  # for the memory of this worker's device; another's may do, this one's never
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"
    ENGINE_ERROR = "engine_error"
    DRAINING = "draining"  # the worker was told to stop before this generation started, or broke by no fault of it


class Timings(Frozen):
    """Seconds each part of one generation took, by the worker's monotonic clock.

    `total` is from its acceptance to its end. `queued` is the part of it in which nobody worked at this
    generation: it waited for its turn, or for the place behind it. Text is encoded, and the file written, while
    other generations are denoised; so the totals of generations in a row overlap, and add up to more than the
    time that all of them took.
    """

    queued: float = Field(ge=0)
    text: float = Field(ge=0)
    denoise: float = Field(ge=0)
    decode: float = Field(ge=0)
    encode: float = Field(ge=0)
    total: float = Field(ge=0)

    @property
    def gpu(self) -> float:
        """Seconds of a GPU: text, denoising and decoding. The rest is waiting, and the file's compression."""
        return self.text + self.denoise + self.decode


class Accepted(Frozen):
    """The worker holds this generation; another may still be running before it."""

    event: Literal["accepted"] = "accepted"
    id: GenerationId


class Started(Frozen):
    event: Literal["started"] = "started"
    id: GenerationId
    steps: Steps


class Step(Frozen):
    """Denoising step `step` of `steps` is done (1-based)."""

    event: Literal["step"] = "step"
    id: GenerationId
    step: Steps
    steps: Steps


class Finished(Frozen):
    """The image lies ready at GET /generations/{id}/image.

    `is_image_safe` is false when it looks like the grey picture that the weights draw instead of what they
    refuse, and `safety_reason` says why; that is a suspicion, and the image is delivered all the same.
    """

    event: Literal["finished"] = "finished"
    id: GenerationId
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    bytes: int = Field(gt=0)
    media_type: MediaType = "image/png"
    width: Side
    height: Side
    seed: Seed
    is_image_safe: bool = True
    safety_reason: str = ""
    timings: Timings

    @model_validator(mode="after")
    def _a_suspicion_says_why(self) -> Finished:
        if self.is_image_safe == bool(self.safety_reason):
            raise ValueError("is_image_safe, safety_reason: a suspicion has a reason, and nothing else has")
        return self


class Failed(Frozen):
    """No image will come from this generation. `retryable` says whether another attempt may succeed."""

    event: Literal["failed"] = "failed"
    id: GenerationId
    type: FailureType
    detail: str
    retryable: bool


Event = Annotated[Accepted | Started | Step | Finished | Failed, Field(discriminator="event")]
EVENT: TypeAdapter[Accepted | Started | Step | Finished | Failed] = TypeAdapter(Event)
"""Reads one line of the stream: `EVENT.validate_json(line)`."""


class WorkerState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"


class WorkerStatus(Frozen):
    """What /readyz says. `reason` is for people and is empty only when ready.

    `running` and `accepted` name the generations that hold the worker's two places; the image of `encoding` is
    made and becomes a file, which takes no place. `tier` names the engine's arithmetic, and `max_pixels` is the
    largest image (width times height) that its memory is enough for. `process` is drawn anew whenever the worker
    starts, `machine` whenever its machine does; they are empty where that is not known.
    """

    state: WorkerState
    reason: str = ""
    contract: str = CONTRACT_VERSION
    version: str
    model: str
    engine: str
    device: str
    tier: str = "exact"
    max_pixels: int = Field(default=MAX_PIXELS, gt=0)
    running: GenerationId | None = None
    accepted: GenerationId | None = None
    encoding: GenerationId | None = None
    process: str = ""
    machine: str = ""


class ProblemType(StrEnum):
    UNAUTHORIZED = "unauthorized"  # 401
    INVALID_REQUEST = "invalid_request"  # 422
    NOT_FOUND = "not_found"  # 404
    METHOD_NOT_ALLOWED = "method_not_allowed"  # 405
    TOO_LARGE = "too_large"  # 413: the body is over MAX_BODY_BYTES
    INTERNAL = "internal"  # 500: a fault of the worker's own; its log has the rest
    CONFLICT = "conflict"  # 409: this id was started with another body
    BUSY = "busy"  # 503 with Retry-After: both places are taken
    NOT_READY = "not_ready"  # 503: loading, draining or broken
    NOT_FINISHED = "not_finished"  # 409: the image is not there yet
    GONE = "gone"  # 410: the image was kept for its minutes and is no more


class Problem(Frozen):
    """RFC 9457 problem details. `errors` names each offending field and what it should be."""

    type: str
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    errors: list[str] = Field(default_factory=list)
