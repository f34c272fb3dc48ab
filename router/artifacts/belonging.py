"""A database and its artifact store belong together: both hold the same mark, made at the first start.

Images that one router host keeps in its own folder cannot be read on another. Instead of finding that out image
by image, a router that opens a database with an artifact store that is not the database's does not start.
"""

from __future__ import annotations

import uuid

from router.artifacts import MARK, Artifacts
from router.errors import ArtifactError
from router.store import Store


async def belong(store: Store, artifacts: Artifacts) -> None:
    """Return if the two belong together, or do from now on. Raises ArtifactError if they do not."""
    known = await store.fact(MARK)
    found = await artifacts.mark()
    if known is None:
        found = found or await artifacts.set_mark(uuid.uuid4().hex)
        known = await store.fact(MARK, found)
    if known != found:
        raise ArtifactError(
            f"the images of this database are in another artifact store (marked {known}; this one "
            f"{f'is marked {found}' if found else 'has no mark'}). More than one router host needs one that all of "
            "them can reach: set LETTERPRESS_ROUTER_S3_BUCKET on each. If you have moved the images, move the file "
            f"{MARK} along with them; if they are lost, write the database's mark into that file to go on without them"
        )
