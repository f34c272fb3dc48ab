"""Images that were stored a moment ago and that somebody here waits for: their bytes need not be read back."""

from __future__ import annotations

from collections import OrderedDict

from router.jobs import Image


class RecentImages:
    """At most `most_bytes` of them; the oldest go first. Each is taken once."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, image: Image, data: bytes) -> None:
        """`data` is what was stored as `image`."""
        self.take(image)
        self._kept[image.path] = data
        self._bytes += len(data)
        while self._bytes > self._most_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped)

    def take(self, image: Image) -> bytes | None:
        """Its bytes, if they are kept; from now on they are not."""
        data = self._kept.pop(image.path, None)
        if data is not None:
            self._bytes -= len(data)
        return data
