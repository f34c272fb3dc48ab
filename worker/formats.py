"""The file formats that an image is delivered in: the same picture, the same text and format, the same bytes.

What a file says of itself is kept in each of them: PNG has text chunks; JPEG and WebP have EXIF, whose
fields are fewer, so the rest of the text goes into its description.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL.Image import Exif, Image
from PIL.PngImagePlugin import PngInfo

from worker.contract import ImageFormat

COMPRESSION = 1
"""zlib's fastest level: 0.05 s for 1024x1024 where level 6 takes 0.16 s, for files a few percent larger."""
DEFAULT_QUALITY = 92
"""Of JPEG and WebP, where the request names none: no difference to be seen, a fifth of the PNG's bytes or less."""
WEBP_EFFORT = 3
"""0 is libwebp's fastest and 6 its smallest; its own default is 4. Bytes differ little, seconds do."""

SOFTWARE, DESCRIPTION = 0x0131, 0x010E
"""EXIF's fields for them."""


def encode(
    image: Image, text: Mapping[str, str], form: ImageFormat = ImageFormat.PNG, quality: int | None = None
) -> bytes:
    """`image` as a file with `text` in it, in the order given. No time stamp, so it can repeat."""
    buffer = io.BytesIO()
    match form:
        case ImageFormat.PNG:
            image.save(buffer, format="PNG", compress_level=COMPRESSION, pnginfo=_chunks(text))
        case ImageFormat.JPEG:
            # Colour at full resolution: halved, as usual, it frays the edges of coloured lettering.
            image.save(
                buffer,
                format="JPEG",
                quality=quality or DEFAULT_QUALITY,
                subsampling=0,
                optimize=True,
                exif=_exif(text),
            )
        case ImageFormat.WEBP:
            image.save(
                buffer,
                format="WEBP",
                quality=quality or DEFAULT_QUALITY,
                method=WEBP_EFFORT,
                use_sharp_yuv=True,
                exif=_exif(text),
            )
    return buffer.getvalue()


def _chunks(text: Mapping[str, str]) -> PngInfo:
    chunks = PngInfo()
    for keyword, value in text.items():
        chunks.add_itxt(keyword, value)
    return chunks


def _exif(text: Mapping[str, str]) -> Exif:
    exif = Exif()
    # As UTF-8, which readers expect where the standard knows ASCII alone.
    exif[SOFTWARE] = text.get("Software", "").encode()
    exif[DESCRIPTION] = "; ".join(value for keyword, value in text.items() if keyword != "Software").encode()
    return exif
