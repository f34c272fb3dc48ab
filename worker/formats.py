"""The file formats that an image is delivered in: the same picture, the same text and format, the same bytes.

What a file says of itself is kept in each of them: PNG has text chunks; JPEG and WebP have EXIF, whose
fields are fewer, so the rest of the text goes into its description, and the record into its user comment.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

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
EXIF_FOLDER, USER_COMMENT = 0x8769, 0x9286
"""The comment lies in a folder of EXIF's own."""
ASCII = b"ASCII\0\0\0"
"""How a user comment says in which letters it is written."""
EXIF_MAX = 60_000
"""Bytes of a record: a JPEG's EXIF is one segment of at most 65,533, where the rest has to fit in, too."""
RECORD = "letterpress"
"""The PNG's keyword for the record."""


@dataclass(frozen=True, slots=True)
class About:
    """What a file says of itself. `text` is for people, by keyword; the record for programs is JSON, of what the
    picture was to show (`shown`: prompt or caption) and of how it was made (`settings`); without the latter there
    is no record."""

    text: Mapping[str, str]
    settings: Mapping[str, object] = field(default_factory=dict)
    shown: Mapping[str, object] = field(default_factory=dict)

    def record(self, *, ascii_only: bool = False, shown: bool = True) -> str:
        """Empty if there is none."""
        if not self.settings:
            return ""
        whole = {**(self.shown if shown else {}), **self.settings}
        return json.dumps(whole, ensure_ascii=ascii_only, separators=(",", ":"))


def encode(image: Image, about: About, form: ImageFormat = ImageFormat.PNG, quality: int | None = None) -> bytes:
    """`image` as a file that says `about` of itself, in the order given. No time stamp, so it can repeat."""
    buffer = io.BytesIO()
    match form:
        case ImageFormat.PNG:
            image.save(buffer, format="PNG", compress_level=COMPRESSION, pnginfo=_chunks(about))
        case ImageFormat.JPEG:
            return _jpeg(image, _exif(about), quality or DEFAULT_QUALITY)
        case ImageFormat.WEBP:
            image.save(
                buffer,
                format="WEBP",
                quality=quality or DEFAULT_QUALITY,
                method=WEBP_EFFORT,
                use_sharp_yuv=True,
                exif=_exif(about),
            )
    return buffer.getvalue()


def _jpeg(image: Image, exif: Exif, quality: int) -> bytes:
    """With colour at full resolution: halved, as usual, it frays the edges of coloured lettering.

    Tables of its own make a file some percent smaller. Pillow gives them room for a byte a pixel (two from quality 95
    on), and what is finer than that, as noise is, fails: it gets the usual tables, with which a file may have any size.
    """
    buffer = io.BytesIO()
    try:
        image.save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True, exif=exif)
    except OSError:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality, subsampling=0, exif=exif)
    return buffer.getvalue()


def _chunks(about: About) -> PngInfo:
    chunks = PngInfo()
    for keyword, value in {**about.text, RECORD: about.record()}.items():
        if value:
            chunks.add_itxt(keyword, value)
    return chunks


def _exif(about: About) -> Exif:
    exif = Exif()
    # As UTF-8, which readers expect where the standard knows ASCII alone.
    exif[SOFTWARE] = about.text.get("Software", "").encode()
    exif[DESCRIPTION] = "; ".join(value for keyword, value in about.text.items() if keyword != "Software").encode()
    record = about.record(ascii_only=True)
    if len(record) > EXIF_MAX:
        record = about.record(ascii_only=True, shown=False)
    if record:
        exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = ASCII + record.encode("ascii")
    return exif
