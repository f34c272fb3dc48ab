"""`letterpress batch` as a user runs it, for tests that kill it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.router.served import API_KEY, ROOT, ServedRouter, until

COMMAND = (sys.executable, "-c", "from infra.cli import main; main()")


@asynccontextmanager
async def door(router: ServedRouter) -> AsyncIterator[str]:
    """A port before the router's socket, where the edge would be."""
    pipes: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner, outer = await asyncio.open_unix_connection(router.socket)
        except OSError:
            writer.close()
            return
        for way in (pump(reader, outer), pump(inner, writer)):
            pipe = asyncio.create_task(way)
            pipes.add(pipe)
            pipe.add_done_callback(pipes.discard)

    server = await asyncio.start_server(connected, "127.0.0.1")
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)


@dataclass
class Batch:
    """One input and its folder. `asked` are the words that say whom to ask."""

    source: Path
    out: Path
    asked: Sequence[str]

    @property
    def index(self) -> Path:
        return self.out / "index.jsonl"

    def entries(self) -> list[dict[str, Any]]:
        """The index's whole lines without the first."""
        whole = self.index.read_bytes().rpartition(b"\n")[0].splitlines() if self.index.exists() else []
        return [json.loads(line) for line in whole[1:]]

    async def start(self, *more: str) -> Process:
        words = ("batch", str(self.source), str(self.out), *self.asked, *more)
        environment = {**os.environ, "LETTERPRESS_API_KEY": API_KEY}
        return await asyncio.create_subprocess_exec(
            *COMMAND, *words, cwd=ROOT, env=environment, stdout=PIPE, stderr=STDOUT
        )

    async def run(self, *more: str) -> tuple[int, str]:
        """To its end: the exit status, and what it said."""
        process = await self.start(*more)
        async with asyncio.timeout(600):
            said, _ = await process.communicate()
        return process.returncode or 0, said.decode()

    async def run_killed(self, after: int) -> bool:
        """Begun, and killed once the index has `after` lines more; whether it was before its end."""
        wanted = len(self.entries()) + after
        process = await self.start()

        async def far_enough() -> bool:
            return process.returncode is not None or len(self.entries()) >= wanted

        await until(far_enough, f"the index has {wanted} lines", within_s=300)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        said, _ = await process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said.decode()
        return process.returncode == -signal.SIGKILL

    def assert_whole(self, lines: int) -> None:
        """Every line has one image, which is the one that its sidecar and the index's last word tell of."""
        last = {entry["line"]: entry for entry in self.entries()}
        assert sorted(last) == list(range(1, lines + 1))
        assert {entry["state"] for entry in last.values()} == {"succeeded"}
        made = [entry for entry in self.entries() if entry["state"] == "succeeded"]
        assert len(made) == lines, "a line was noted twice"
        for entry in made:
            image = self.out / entry["file"]
            assert hashlib.sha256(image.read_bytes()).hexdigest() == entry["sha256"]
            about = json.loads(image.with_suffix(".json").read_text())
            assert (about["line"], about["sha256"], about["seed"]) == (entry["line"], entry["sha256"], entry["seed"])
        files = {path.name for path in self.out.iterdir()}
        images = {entry["file"] for entry in made}
        assert files == images | {f"{Path(name).stem}.json" for name in images} | {"index.jsonl", ".lock"}


def prompts(path: Path, count: int) -> Path:
    path.write_text("".join(f"picture number {number}\n" for number in range(1, count + 1)))
    return path
