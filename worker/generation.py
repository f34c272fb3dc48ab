"""One generation: its request, the events so far, and whoever follows them. And how long it is kept.

Lives in the event loop; the engine's threads only read `stop`. `turn` is set when it may be rendered, or is to
find out that it has ended. What runs when is `worker.runner`'s.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator

from worker.contract import Event, Failed, Finished, GenerationRequest


class Generation:
    """Events are appended and never changed, so every follower sees the same story from its beginning."""

    def __init__(self, generation_id: str, request: GenerationRequest, accepted_at: float) -> None:
        self.id = generation_id
        self.request = request
        self.accepted_at = accepted_at
        self.stop = threading.Event()
        self.turn = asyncio.Event()
        self.image: bytes | None = None
        self.fetched = False
        self.followers = 0
        self.events: list[Event] = []
        self._news = asyncio.Event()

    @property
    def end(self) -> Finished | Failed | None:
        """The last event, once there is one."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Finished | Failed) else None

    def publish(self, event: Event) -> None:
        """Tell every follower. Nothing follows an end."""
        self.events.append(event)
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, heartbeat_s: float) -> AsyncGenerator[Event | None, None]:
        """All events from the first to the end, as they come; None after each `heartbeat_s` without one."""
        seen = 0
        self.followers += 1
        try:
            while True:
                while seen < len(self.events):
                    event = self.events[seen]
                    seen += 1
                    yield event
                if self.end is not None:
                    return
                try:
                    async with asyncio.timeout(heartbeat_s):
                        await self._news.wait()
                except TimeoutError:
                    yield None
        finally:
            self.followers -= 1


class Kept:
    """Ended generations, for `keep_s` seconds, at most `count` of them and `bytes_max` bytes of images.

    The oldest go first. Ids that went are remembered (the last `forgotten_max`), so that a late caller
    learns that there was an image, rather than that there was none.
    """

    def __init__(
        self, keep_s: float, count: int = 64, bytes_max: int = 512 * 2**20, forgotten_max: int = 10_000
    ) -> None:
        self._keep_s = keep_s
        self._count = count
        self._bytes_max = bytes_max
        self._forgotten_max = forgotten_max
        self._ended: OrderedDict[str, tuple[Generation, float]] = OrderedDict()
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._ended)

    def oldest_unfetched(self, since: float) -> float | None:
        """When the first image ended that ended at `since` or later and nobody has fetched."""
        waiting = (at for kept, at in self._ended.values() if kept.image and not kept.fetched and at >= since)
        return min(waiting, default=None)

    def get(self, generation_id: str, now: float) -> Generation | None:
        self.expire(now)
        entry = self._ended.get(generation_id)
        return entry[0] if entry else None

    def forgot(self, generation_id: str) -> bool:
        """Whether it was kept once and is no more."""
        return generation_id in self._forgotten

    def add(self, generation: Generation, now: float) -> None:
        self._forgotten.pop(generation.id, None)
        self._ended[generation.id] = (generation, now)
        self.bytes += len(generation.image or b"")
        self.expire(now)

    def expire(self, now: float) -> None:
        """Let go of what is too old, then of the oldest while there is too much; the newest always stays."""
        while self._ended:
            oldest, ended_at = next(iter(self._ended.values()))
            too_much = len(self._ended) > self._count or self.bytes > self._bytes_max
            if now - ended_at <= self._keep_s and not (too_much and len(self._ended) > 1):
                return
            del self._ended[oldest.id]
            self.bytes -= len(oldest.image or b"")
            self._forgotten[oldest.id] = None
            if len(self._forgotten) > self._forgotten_max:
                self._forgotten.popitem(last=False)
