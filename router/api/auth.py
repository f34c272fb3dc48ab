"""Who is asking: `Authorization: Bearer <api key>`, or Ideogram's `Api-Key: <api key>`, looked up by its SHA-256.

Only hashes are stored and compared, so how long the look-up takes says nothing about any key.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import structlog
from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from router.api.context import Context, InContext
from router.api.refusals import unauthorized
from router.store import ApiKey

_SCHEME = HTTPBearer(auto_error=False, scheme_name="api-key", description="An API key of this router.")
_IDEOGRAM_SCHEME = APIKeyHeader(name="Api-Key", auto_error=False, scheme_name="ideogram-key", description="The same.")


def digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


async def _caller(
    context: InContext, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_SCHEME)]
) -> ApiKey:
    if credentials is None:
        raise unauthorized("no API key was sent; send the header: Authorization: Bearer <api key>")
    return await _known(context, credentials.credentials)


async def _ideogram_caller(
    context: InContext,
    given: Annotated[str | None, Security(_IDEOGRAM_SCHEME)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_SCHEME)],
) -> ApiKey:
    """By either header: a client of several dialects has one key."""
    if given is None and credentials is None:
        raise unauthorized("no API key was sent; send the header: Api-Key: <api key>")
    return await _known(context, given or (credentials.credentials if credentials else ""))


async def _known(context: Context, key: str) -> ApiKey:
    found = await context.core.callers.of(digest(key))
    if found is None:
        raise unauthorized("this API key is not known here; check it, or ask the operator for one")
    structlog.contextvars.bind_contextvars(api_key=found.name)
    return found


Caller = Annotated[ApiKey, Depends(_caller)]
IdeogramCaller = Annotated[ApiKey, Depends(_ideogram_caller)]
