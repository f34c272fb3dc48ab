"""A file of lines as it comes, never whole: each line with the byte at which the next one begins."""

from __future__ import annotations

from collections.abc import AsyncIterator

from router.errors import RouterError

MAX_LINE = 2**20
"""Bytes; as long as any request may be."""


class LineTooLongError(RouterError):
    """`line` counts from the place where reading began."""

    def __init__(self, line: int) -> None:
        super().__init__(f"a line is longer than {MAX_LINE} bytes")
        self.line = line


async def lines_of(chunks: AsyncIterator[bytes], begin: int = 0) -> AsyncIterator[tuple[int, bytes]]:
    """`begin` is the byte of the file with which the chunks begin. Raises LineTooLongError."""
    left, end, count = b"", begin, 0
    async for chunk in chunks:
        *whole, left = (left + chunk).split(b"\n")
        for line in whole:
            count += 1
            end += len(line) + 1
            if len(line) > MAX_LINE:
                raise LineTooLongError(count)
            yield end, line
        if len(left) > MAX_LINE:
            raise LineTooLongError(count + 1)
    if left:
        yield end + len(left), left
