"""The batch client at a served router, for tests: its input, what it said, and what it left."""

from __future__ import annotations

import json
from pathlib import Path

from router.client.batch import ByRouter, Defaults, Outcome, Settings, Tally, run
from tests.integration.router.batching import Batch
from tests.integration.router.served import ServedRouter

SMALL = Defaults(width=256, height=256, steps=2)


class Heard:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: dict[int, str] = {}
        self.put_aside: dict[int, str] = {}
        self.checked = 0

    def checking(self, done: int, total: int) -> None:
        assert done <= total
        self.checked = done

    def begins(self, tally: Tally) -> None:
        pass

    def moved(self) -> None:
        pass

    def bad(self, line: int, why: str) -> None:
        self.lines[line] = why

    def aside(self, line: int, why: str) -> None:
        self.put_aside[line] = why


async def ran(settings: Settings, maker: ByRouter) -> tuple[Outcome, Heard]:
    heard = Heard()
    return await run(settings, lambda: maker, heard), heard


def settings(tmp_path: Path, *lines: object, **more: object) -> Settings:
    source = tmp_path / "prompts.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    source.write_text("".join(f"{text}\n" for text in texts))
    return Settings(source, tmp_path / "out", defaults=SMALL, **more)  # type: ignore[arg-type]


def last(tmp_path: Path) -> dict[int, dict[str, object]]:
    batch = Batch(tmp_path / "prompts.jsonl", tmp_path / "out", ())
    return {entry["line"]: entry for entry in batch.entries()}


async def count(router: ServedRouter) -> int:
    async with router.admin() as admin:
        (pool,) = await admin.pools()
    return pool.succeeded
