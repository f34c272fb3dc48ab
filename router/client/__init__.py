"""How other programs speak to a router: over HTTP, typed, and without importing the router itself.

`AdminClient` is for whoever keeps the workers (infra), `RouterClient` for whoever wants an image by a native
job. Both are async and hold one connection pool; close them, or use them as context managers. Neither retries
nor limits a call's whole time: that is the caller's choice (`asyncio.timeout`), and every call here may be
repeated safely but `submit`. Errors are the tree in `router.client.errors`.
"""

from router.client.admin import AdminClient
from router.client.errors import (
    JobEndedError,
    RouterAnswerError,
    RouterAwayError,
    RouterClientError,
    RouterNotFoundError,
    RouterRefusedError,
    RouterUnauthorizedError,
    RouterUnavailableError,
)
from router.client.jobs import RouterClient

__all__ = [
    "AdminClient",
    "JobEndedError",
    "RouterAnswerError",
    "RouterAwayError",
    "RouterClient",
    "RouterClientError",
    "RouterNotFoundError",
    "RouterRefusedError",
    "RouterUnauthorizedError",
    "RouterUnavailableError",
]
