"""`letterpress generate` and `letterpress batch`: images for whoever sits at a shell.

Thin over `router.client`: where to ask and with which key, options into requests, errors into words. A stack of this
checkout is asked unless `--url` (or LETTERPRESS_URL) names another router; only the former needs the infra extra.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.errors import InfraError

if TYPE_CHECKING:
    from router.client.batch import Defaults, Maker, Outcome, Patience, Settings
    from router.contract import JobRequest

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
NOT_WHOLE = 3
"""Exit status of a batch whose every line was dealt with, and some got no image."""
BATCH_POOL = "batch"
"""Where a batch's lines go at a router unless something else is said. A worker by itself has no pools."""
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

Url = Annotated[str | None, typer.Option("--url", envvar="LETTERPRESS_URL", help="A router's address.")]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="LETTERPRESS_API_KEY", help="Its key; better by the variable or a file."),
]
KeyFile = Annotated[Path | None, typer.Option("--api-key-file", help="A file with the key.")]
StackOption = Annotated[str, typer.Option("--stack", help="The stack to ask, where no --url is given.")]
Size = Annotated[str | None, typer.Option("--size", metavar="WxH", help="In pixels; 1024x1024 unless said.")]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="V4_TURBO_12, V4_DEFAULT_20 or V4_QUALITY_48; turbo, default, quality.")
]
Steps = Annotated[int | None, typer.Option("--steps", help="Instead of a preset.")]
Format = Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.")]
Quality = Annotated[int | None, typer.Option("--quality", help="1 to 100, of jpeg and webp.")]
Tier = Annotated[str | None, typer.Option("--tier", help="Only a worker of this tier.")]
Model = Annotated[str | None, typer.Option("--model", help="Only a worker that serves this model.")]


class AskingError(InfraError):
    """It could not be asked, or no image came of it."""


@dataclass(frozen=True, slots=True)
class Where:
    """A router and a key for it."""

    url: str
    key: str


def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to draw, or a structured caption as JSON; - reads it from stdin.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file; - is standard output.")],
    *,
    count: Annotated[int, typer.Option("-n", min=1, max=100, help="Images; their files are numbered.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes the same image again.")] = None,
    size: Size = None,
    preset: PresetOption = None,
    steps: Steps = None,
    form: Format = None,
    quality: Quality = None,
    pool: Annotated[str, typer.Option("--pool")] = "interactive",
    tier: Tier = None,
    model: Model = None,
    url: Url = None,
    api_key: ApiKey = None,
    api_key_file: KeyFile = None,
    stack: StackOption = "local",
) -> None:
    """Make an image and save it."""
    from router.client.once import Once, make_all

    to_stdout = str(output) == "-"
    if to_stdout and count > 1:
        raise typer.BadParameter("one image goes to standard output, not several", param_hint="-n")
    if form is None and not to_stdout:
        form = FORMATS.get(output.suffix.lower())
        if form is None:
            raise typer.BadParameter(f"end it in {', '.join(FORMATS)}, or say --format", param_hint="--output")
        _writable(output)
    text = sys.stdin.read() if prompt == "-" else prompt
    fields: dict[str, object] = {"prompt": text, **_fields(size, preset, steps, form, quality)}
    fields |= {"pool": pool, "tier": tier, "model": model}
    requests = [_request({**fields, "seed": None if seed is None else seed + i}) for i in range(count)]
    where = _where(url, api_key, api_key_file, stack)
    names = [output if count == 1 else output.with_stem(f"{output.stem}-{i}") for i in range(1, count + 1)]
    with _told("stopped; the images that were not there yet are cancelled"):
        asyncio.run(make_all(where.url, where.key, [Once(*pair) for pair in zip(requests, names, strict=True)]))


def batch(
    source: Annotated[Path, typer.Argument(metavar="PROMPTS", help="A prompt, or JSON, a line (docs/batch.md).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder: images, and what is known of each.")],
    *,
    size: Size = None,
    preset: PresetOption = None,
    steps: Steps = None,
    form: Format = None,
    quality: Quality = None,
    pool: Annotated[str | None, typer.Option("--pool", help="batch unless said.")] = None,
    priority: Annotated[int | None, typer.Option("--priority", help="Among the key's own jobs; higher first.")] = None,
    tier: Tier = None,
    model: Model = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, max=1000, help="Jobs at a time.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many images this time.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also the lines that failed before.")] = False,
    redo_changed: Annotated[bool, typer.Option("--redo-changed", help="Also lines edited since their image.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Believe files by their size, without reading them.")] = False,
    price: Annotated[float | None, typer.Option("--price", min=0, help="US dollars an hour of one GPU.")] = None,
    patience: Annotated[float, typer.Option("--patience", min=0, help="Seconds without an answer to bear.")] = 3600,
    worker: Annotated[str | None, typer.Option("--worker", metavar="URL", help="One worker, without a router.")] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="A file with that worker's token.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    api_key_file: KeyFile = None,
    stack: StackOption = "local",
) -> None:
    """Make an image of each line. Interrupted, it goes on where it stopped: run it again."""
    from router.client.batch import Settings

    defaults = _defaults(
        {**_fields(size, preset, steps, form, quality), "priority": priority, "tier": tier, "model": model}
        | {"pool": pool}
    )
    at_once = concurrency or (32 if worker is None else 2)
    settings = Settings(
        source=source,
        out=out,
        defaults=defaults,
        pool=BATCH_POOL if worker is None else None,
        concurrency=at_once,
        limit=limit,
        retry_failed=retry_failed,
        redo_changed=redo_changed,
        quick=quick,
        price=price,
        patience_s=patience,
    )
    if worker is not None:
        if url is not None and os.environ.get("LETTERPRESS_URL") != url:
            raise typer.BadParameter("give --worker or --url, not both", param_hint="--worker")
        if token_file is None:
            raise typer.BadParameter("is needed with --worker", param_hint="--token-file")
        maker = _worker_maker(worker, _read(token_file), at_once)
    else:
        where = _where(url, api_key, api_key_file, stack)
        if price is None and url is None:
            settings = _priced(settings, stack, pool or BATCH_POOL)
        maker = _router_maker(where, at_once)
    with _told("stopped; run the same again and it goes on where it stopped"):
        outcome = asyncio.run(_drawn(settings, maker))
    if not outcome.whole:
        raise typer.Exit(NOT_WHOLE)


async def _drawn(settings: Settings, maker: Callable[[Patience], Maker]) -> Outcome:
    from router.client.batch import Patience, run
    from router.client.batch.progress import Drawn

    with Drawn(settings.out) as drawn:
        patience = Patience(settings.patience_s, drawn.waits)
        outcome = await run(settings, lambda: maker(patience), drawn)
    drawn.ends(outcome)
    return outcome


def _router_maker(where: Where, at_once: int) -> Callable[[Patience], Maker]:
    from router.client import RouterClient
    from router.client.batch import ByRouter

    return lambda patience: ByRouter(RouterClient(where.url, where.key, connections=at_once), patience)


def _worker_maker(url: str, token: str, at_once: int) -> Callable[[Patience], Maker]:
    from router.client.batch import ByWorker
    from router.client.worker import WorkerClient

    return lambda patience: ByWorker(WorkerClient(url, token, connections=at_once), patience)


def _where(url: str | None, key: str | None, key_file: Path | None, stack: str) -> Where:
    """The router that is meant; its key from the option, the variable, a file or the stack."""
    key = _read(key_file) if key_file is not None else _key(key, "--api-key (LETTERPRESS_API_KEY)") if key else None
    if url is not None:
        if not key:
            raise AskingError(f"{url} wants a key: give --api-key-file, or set LETTERPRESS_API_KEY")
        return Where(url, key)
    from infra.deployment import Deployment

    endpoint = Deployment.remembered(stack).endpoint
    return Where(endpoint.url, key or _read(endpoint.api_key_file))


def _priced(settings: Settings, stack: str, pool: str) -> Settings:
    """With what a GPU of the pool costs, if its machines' offers say so."""
    from dataclasses import replace

    from infra.deployment import stack_name
    from infra.paths import StackPaths
    from infra.planning.placement import machine_names, read_placement

    placement = read_placement(StackPaths.of(stack_name(stack)).root / "placement.json")
    own = [placed.offer for placed in placement.machines if placed.machine in machine_names(pool, 256)]
    gpus = sum(max(offer.gpus, 1) for offer in own)
    return replace(settings, price=sum(offer.price for offer in own) / gpus) if gpus else settings


def _fields(
    size: str | None, preset: str | None, steps: int | None, form: str | None, quality: int | None
) -> dict[str, object]:
    """Options as a JobRequest's fields; what was not said is not there."""
    found: dict[str, object] = {"steps": steps, "format": form, "quality": quality, "preset": _preset(preset)}
    if size is not None:
        sides = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size)
        if sides is None:
            raise typer.BadParameter(f"{size} is not WIDTHxHEIGHT, as in 1024x768", param_hint="--size")
        found |= {"width": int(sides[1]), "height": int(sides[2])}
    return {name: value for name, value in found.items() if value is not None}


def _preset(preset: str | None) -> str | None:
    """By its name, or by the one word of it that a person remembers."""
    from worker.contract import Preset

    if preset is None:
        return None
    return next((name for name in Preset if name.speed == preset.upper()), preset.upper())


def _request(fields: dict[str, object]) -> JobRequest:
    from pydantic import ValidationError

    from router.client.batch.lines import explained, generation
    from router.contract import JobRequest

    given = {name: value for name, value in fields.items() if value is not None}
    try:
        request = JobRequest.model_validate(given, strict=False)
        generation(request if request.seed is not None else request.model_copy(update={"seed": 0}))
    except ValidationError as error:
        raise AskingError(explained(error)) from None
    return request


def _defaults(fields: dict[str, object]) -> Defaults:
    """Checked as a request's fields are, so that not every line says the same."""
    from router.client.batch import Defaults

    _request({"prompt": "any", "seed": 0, **fields})
    return Defaults.model_validate(fields)


def _writable(output: Path) -> None:
    """AskingError for a file that could not be written once its image is paid for."""
    folder = output.parent
    if not folder.is_dir():
        raise AskingError(f"{folder} is no folder: make it first, or name another --output")
    if output.is_dir():
        raise AskingError(f"{output} is a folder: name a file in it")
    if not os.access(output if output.exists() else folder, os.W_OK):
        raise AskingError(f"{output} may not be written: name another --output")


def _read(path: Path) -> str:
    """The key or token in a file."""
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AskingError(f"{path} cannot be read: {error}") from None
    return _key(found, str(path))


def _key(text: str, where: str) -> str:
    """What can travel in a header: what cannot would fail only when it is sent, and then each time."""
    if not re.fullmatch(r"[!-~]+", text):
        raise AskingError(f"{where} holds no key: that is one line of visible ASCII characters")
    return text


@contextmanager
def _told(stopped: str) -> Iterator[None]:
    """Errors that are for people end the command with one message; `stopped` is what Ctrl-C says."""
    from router.client import RouterClientError
    from router.client.batch import BatchError

    try:
        yield
    except KeyboardInterrupt:
        typer.echo(stopped, err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (BatchError, RouterClientError) as error:
        raise AskingError(str(error)) from None
    except OSError as error:
        raise AskingError(f"{error.filename or 'the folder'}: {error.strerror or error}") from None
