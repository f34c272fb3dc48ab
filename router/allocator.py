"""Freed memory is kept for the next image, instead of being given back to the kernel after each.

An image passes through here as several buffers of half a megabyte and more: as it came, whole, in base64, as an answer.
By default glibc gives a heap's free end back, and each thread has a heap of its own; so every request touches its pages
for the first time, which cost 326 to 381 page faults and 1.1 ms each with images of 500 kB
(docs/adr/0036-freed-memory-is-kept.md).
"""

from __future__ import annotations

import ctypes
import sys

MIB = 2**20
KEPT_BYTES = 64 * MIB
"""Of a heap's free end, at most."""
OF_THE_HEAP_BYTES = 8 * MIB
"""Smaller buffers come from the heap; larger ones are rare, and go back to the kernel when they are freed."""
STEP_BYTES = 4 * MIB
"""By which the heap grows. It costs nothing before it is touched."""

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_SETTINGS = {_TRIM_THRESHOLD: KEPT_BYTES, _TOP_PAD: STEP_BYTES, _MMAP_THRESHOLD: OF_THE_HEAP_BYTES, _ARENA_MAX: 1}
"""One heap for all threads: they take turns anyway, and what one has freed serves the next."""


def keep_freed_memory() -> bool:
    """For the whole process, before it has threads. False where another C library than glibc keeps its own ways."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(setting, value) == 1 for setting, value in _SETTINGS.items())
