"""What machines that are reached through SSH have in common: a connection, and a folder of the stack's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath

from infra.ssh.connection import Connection

Connect = Callable[[], Awaitable[Connection]]


def stack_folder(stack_id: str) -> PurePosixPath:
    """Where everything lies that a stack keeps on a machine."""
    return PurePosixPath("/var/lib/letterpress") / stack_id


@dataclass(frozen=True, slots=True)
class RemoteHost:
    """`stack_id` is whose units these are; `connect` gives a connection, an open one if there is. `owner` is whose the
    files are that are written without saying so."""

    name: str
    stack_id: str
    connect: Connect
    owner: str = "root:root"

    @property
    def root(self) -> PurePosixPath:
        return stack_folder(self.stack_id)

    async def write(self, path: PurePath, content: bytes, mode: int = 0o600, owner: str = "") -> None:
        """Put a file in place, whole or not at all; its folders are made, for root alone."""
        await (await self.connect()).write(self.root / path, content, mode, owner or self.owner)

    async def read(self, path: PurePath) -> bytes | None:
        return await (await self.connect()).read(self.root / path)

    async def get(self, port: int, path: str) -> tuple[int, bytes] | None:
        return await (await self.connect()).get(port, path)
