"""The images of a worker that has no GPU."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib

from worker.contract import GenerationRequest


def png(request: GenerationRequest, padding: int = 0) -> bytes:
    """A valid PNG of the asked size in one colour, which depends on prompt and seed: the same bytes again."""
    colour = hashlib.sha256(f"{request.prompt}\0{request.seed}".encode()).digest()[:3]
    row = b"\0" + colour * request.width

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", request.width, request.height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(row * request.height, level=1)
    noise = chunk(b"noIs", random.Random(colour).randbytes(padding)) if padding else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + noise + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
