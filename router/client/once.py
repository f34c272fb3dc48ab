"""Images asked for at a shell: progress on standard error, each saved when it is there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from router.client.errors import JobEndedError
from router.client.jobs import RouterClient
from router.contract import JobRequest, JobView

STDOUT = Path("-")


@dataclass(frozen=True, slots=True)
class Once:
    """One image and the file that it becomes."""

    request: JobRequest
    file: Path


async def make_all(url: str, key: str, wanted: Sequence[Once]) -> None:
    """All of them, or the first error; those that are not done then are cancelled. Raises RouterClientError."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        async with RouterClient(url, key) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for once in wanted:
                        task = bars.add_task(str(once.file), total=None, what="asked for")
                        group.create_task(_make(client, once, bars, task))
            except BaseExceptionGroup as several:  # the first is the cause, the others came of it
                raise several.exceptions[0] from None


async def _make(client: RouterClient, once: Once, bars: Progress, task: TaskID) -> None:
    def heard(view: JobView) -> None:
        if view.progress is not None:
            bars.update(task, total=view.progress.steps, completed=view.progress.step, what="drawing")
        else:
            bars.update(task, what=view.state.value)

    ended, data = await client.generated(once.request, heard)
    image = ended.image
    if image is None:
        raise JobEndedError(ended)
    bars.update(task, total=1, completed=1, what="done")
    if once.file == STDOUT:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        await asyncio.to_thread(once.file.write_bytes, data)
    note = "" if image.is_image_safe else f"  looks refused: {image.safety_reason}"
    bars.console.print(f"{once.file}  {image.width}x{image.height}, seed {image.seed}{note}", markup=False)
