"""A thread that a stage of the engine lives in, seen from the event loop."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a call returned, and when it was at work, by the thread's clock."""

    value: T
    began: float
    ended: float


class StageThread:
    """Runs calls one after another. A daemon, unlike an executor's thread: a call that never returns (a
    hung device, an import in its midst) must not keep a process that was told to end."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.moves = 0
        """Counts what the call in progress tells of itself; a call that tells nothing for long hangs."""
        self._clock = clock
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> asyncio.Future[Done[T]]:
        """Have `function` run; the future holds what it returned or raised."""
        future: Future[Done[T]] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            began = self._clock()
            try:
                value = function()
                future.set_result(Done(value, began, self._clock()))
            except StopIteration as error:
                # An asyncio future takes none (PEP 479's reason), and its caller would wait for ever.
                stopped = RuntimeError("the call raised StopIteration")
                stopped.__cause__ = error
                future.set_exception(stopped)
            except BaseException as error:  # noqa: BLE001 - it is the caller's, who waits for it elsewhere
                future.set_exception(error)

        self._calls.put(work)
        return asyncio.wrap_future(future)

    def moved(self) -> None:
        """The call in progress goes on; said from within it."""
        self.moves += 1

    def where(self) -> str:
        """The lines of code that it is in now, the innermost last: for the log, when it hangs."""
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - there is no public way
        return "".join(traceback.format_stack(frame)) if frame else "nowhere: the thread has ended"

    def close(self, timeout_s: float) -> bool:
        """Take no more calls; whether the thread ended within `timeout_s` (it is within a call otherwise)."""
        self._calls.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            work()
            del work  # and with it what the call still refers to
