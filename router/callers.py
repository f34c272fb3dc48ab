"""Whose API key it is. Who asks often is not looked up each time."""

from __future__ import annotations

from collections.abc import Callable

from router.store import ApiKey, Store

KNOWN_FOR_S = 1.0
"""So long may a key that was revoked, or limited, by way of another process be taken here for what it was."""


class Callers:
    """Keys by the SHA-256 of what was sent. Only those that exist are kept, so a guesser fills nothing."""

    def __init__(self, store: Store, monotonic: Callable[[], float]) -> None:
        self._store, self._monotonic = store, monotonic
        self._known: dict[str, tuple[ApiKey, float]] = {}
        self._changes = 0

    async def of(self, key_sha256: str) -> ApiKey | None:
        """Raises StoreUnavailableError."""
        known = self._known.get(key_sha256)
        if known is not None and self._monotonic() - known[1] < KNOWN_FOR_S:
            return known[0]
        asked_at, changes = self._monotonic(), self._changes
        found = await self._store.api_key(key_sha256)
        if found is None:
            self._known.pop(key_sha256, None)
        elif changes == self._changes:  # or it may have been read before the change
            self._known[key_sha256] = found, asked_at
        return found

    def changed(self) -> None:
        """This process has revoked or limited a key: from now on that counts."""
        self._known.clear()
        self._changes += 1
