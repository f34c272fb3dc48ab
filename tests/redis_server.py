"""A real Redis for tests: on a free loopback port, in a folder of its own, keeping nothing on disk."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from infra.setup.for_tests import find_redis
from tests.ports import free_ports
from tests.waiting import eventually

START_S = 30


@dataclass
class RedisServer:
    program: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        return Redis(port=self.port)

    def start(self) -> None:
        """Begin, empty, at the same address, and wait until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([self.program, *options], stdout=log, stderr=log, cwd=self.folder)
        process = self.process

        def answers() -> bool:
            assert process.poll() is None, f"Redis ended:\n{(self.folder / 'log').read_text()}"
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", self.port)) == 0

        eventually(answers, START_S, "Redis answers")

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(by)
            self.process.wait(START_S)
            self.process = None

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A server that runs, and is gone at the end. Skips the test where Redis is not to be had."""
    program = find_redis()
    if program is None:
        pytest.skip("Redis is not installed, and `letterpress setup --tests` could not install it")
    folder = Path(tempfile.mkdtemp(prefix="lp-redis-"))
    server = RedisServer(program, folder, free_ports(1)[0])
    try:
        server.start()
        yield server
    finally:
        server.stop(signal.SIGKILL)
        shutil.rmtree(folder)
