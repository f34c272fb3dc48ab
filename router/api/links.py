"""Image URLs that need no key: signed, and good for a while.

A URL ends up in chats, tickets and <img> tags, where an API key must never go. HMAC-SHA256 over the job and
the moment of expiry, by a key that only routers hold.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from urllib.parse import urlencode

ROUNDING_S = 300
"""Expiry is rounded up to this, so that asking again within minutes gives the same URL, and a cache can hit."""


@dataclass(frozen=True, slots=True)
class Links:
    """Makes and checks image URLs under `base`, good for `lifetime_s` seconds (and at most ROUNDING_S more)."""

    base: str
    key: bytes = field(repr=False)
    lifetime_s: int

    def url(self, job_id: str, now: float, lifetime_s: int | None = None) -> str:
        lifetime = self.lifetime_s if lifetime_s is None else lifetime_s
        expires = (int(now) // ROUNDING_S + 1) * ROUNDING_S + lifetime
        query = urlencode({"expires": expires, "signature": self._signature(job_id, expires)})
        return f"{self.base}/artifacts/{job_id}.png?{query}"

    def allows(self, job_id: str, expires: int, signature: str) -> bool:
        """Whether this signature is ours, in time that does not depend on it. Says nothing about the clock."""
        return hmac.compare_digest(self._signature(job_id, expires).encode(), signature.encode(errors="replace"))

    def _signature(self, job_id: str, expires: int) -> str:
        return hmac.new(self.key, f"{job_id}\n{expires}".encode(), hashlib.sha256).hexdigest()
