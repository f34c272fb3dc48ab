"""PNG bytes of a picture: the same picture and the same text, the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

COMPRESSION = 1
"""zlib's fastest level: 0.05 s for 1024x1024 where level 6 takes 0.16 s, for files a few percent larger."""


def encode(image: Image, text: Mapping[str, str]) -> bytes:
    """`image` as PNG with `text` as its text chunks, in the order given. No time stamp, so it can repeat."""
    chunks = PngInfo()
    for keyword, value in text.items():
        chunks.add_itxt(keyword, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=COMPRESSION, pnginfo=chunks)
    return buffer.getvalue()
