"""Who is asking: `Authorization: Bearer <api key>`, looked up by its SHA-256.

Only hashes are stored and compared, so how long the look-up takes says nothing about any key.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import structlog
from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from router.api.context import InContext
from router.api.refusals import unauthorized
from router.store import ApiKey

_SCHEME = HTTPBearer(auto_error=False, scheme_name="api-key", description="An API key of this router.")


def digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


async def _caller(
    context: InContext, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_SCHEME)]
) -> ApiKey:
    if credentials is None:
        raise unauthorized("no API key was sent; send the header: Authorization: Bearer <api key>")
    key = await context.core.store.api_key(digest(credentials.credentials))
    if key is None:
        raise unauthorized("this API key is not known here; check it, or ask the operator for one")
    structlog.contextvars.bind_contextvars(api_key=key.name)
    return key


Caller = Annotated[ApiKey, Depends(_caller)]
