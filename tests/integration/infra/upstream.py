"""A small server on the router's socket, for tests of what stands in front of it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

LONG_WAIT_S = 3.2
"""Longer than any of nginx's short timeouts could hide."""


@dataclass
class Upstream:
    """Stands where the router stands: tells what it was asked, waits, or streams, by path."""

    asked: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    answering: set[asyncio.Task[None]] = field(default_factory=set)

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.answering.add(asyncio.create_task(self.answer(reader, writer)))

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"Content-Length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        self.asked.append(head)
        match head.split()[1]:
            case "/slow":
                await asyncio.sleep(LONG_WAIT_S)
                _respond(writer, "200 OK", b"at last")
            case "/events":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
                writer.write(b"event: queued\r\n\r\n")
                await writer.drain()
                await self.release.wait()
                writer.write(b"event: succeeded\r\n\r\n")
            case "/refused":
                _respond(writer, "503 Service Unavailable", b'{"whose": "the router"}')
            case "/missing":
                _respond(writer, "404 Not Found", b'{"whose": "the router"}')
            case _:
                _respond(writer, "200 OK", b"hello")
        writer.close()
        await writer.wait_closed()


def _respond(writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Request-Id: theirs\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
