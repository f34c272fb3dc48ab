"""A multipart form as it comes: small fields whole, a file in pieces that nobody holds together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from router.api.refusals import Kind, refused

MAX_FIELD = 4096
"""Bytes of a field that is no file."""
MAX_PARTS = 32
MAX_HEADERS = 8192
"""Bytes of one part's headers."""


@dataclass(frozen=True, slots=True)
class FieldRead:
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class FileBegan:
    name: str
    filename: str


@dataclass(frozen=True, slots=True)
class FileData:
    data: bytes


Part = FieldRead | FileBegan | FileData


async def parts_of(request: Request) -> AsyncIterator[Part]:
    """Raises RefusedError for a body that is no form, or one with too much besides its file."""
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise refused(Kind.UNSUPPORTED_MEDIA_TYPE, "send the file as a form: Content-Type: multipart/form-data")
    reader = _Reader(boundary)
    async for chunk in request.stream():
        for part in reader.read(chunk):
            yield part
    if not reader.whole:
        raise refused(Kind.INVALID_FORM, "the form ends in the middle")


class _Reader:
    def __init__(self, boundary: bytes) -> None:
        self._found: list[Part] = []
        self._headers: dict[str, bytes] = {}
        self._header, self._value = bytearray(), bytearray()
        self._name, self._is_file, self._field = "", False, bytearray()
        self._parts = 0
        self.whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_began,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ended,
                "on_headers_finished": self._headers_ended,
                "on_part_data": self._data,
                "on_part_end": self._part_ended,
                "on_end": self._ended,
            },
        )

    def read(self, chunk: bytes) -> list[Part]:
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise refused(Kind.INVALID_FORM, f"the body is not a form: {str(error)[:200]}") from error
        found, self._found = self._found, []
        return found

    def _part_began(self) -> None:
        self._headers, self._field = {}, bytearray()
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise refused(Kind.INVALID_FORM, f"the form has more than {MAX_PARTS} parts")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._bounded(len(self._header), MAX_HEADERS)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bounded(len(self._value), MAX_HEADERS)

    def _header_ended(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _headers_ended(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = b"filename" in options
        if self._is_file:
            self._found.append(FileBegan(self._name, options[b"filename"].decode(errors="replace")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._found.append(FileData(data[start:end]))
        else:
            self._field += data[start:end]
            self._bounded(len(self._field), MAX_FIELD)

    def _part_ended(self) -> None:
        if not self._is_file:
            self._found.append(FieldRead(self._name, self._field.decode(errors="replace")))

    def _ended(self) -> None:
        self.whole = True

    def _bounded(self, length: int, bound: int) -> None:
        if length > bound:
            raise refused(Kind.INVALID_FORM, f"a part of the form that is no file has more than {bound} bytes")
