"""The Idempotency-Key header: a request that is sent again under the same key is served once."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Header, Request
from pydantic import BaseModel

from router.store import Repeatable

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="The same request again under this key, of the same API key and within a day, is the same jobs.",
    ),
]


def repeatable(name: str | None, request: Request, body: BaseModel | bytes, *, waits: bool) -> Repeatable | None:
    """`body` as it was asked, before anything was drawn for it; the path is part of what was asked."""
    if name is None:
        return None
    asked = body if isinstance(body, bytes) else body.model_dump_json().encode()
    digest = hashlib.sha256(request.url.path.encode() + b"\0" + asked).hexdigest()
    return Repeatable(name, digest, waits)
