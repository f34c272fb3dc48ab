"""The seed-style dialect: the request and the answer of the published server, to the letter.

One image, in the interactive pool, in the answer. What the published server did not have (seeds, presets,
pools) is not here: `/v1/jobs` has it.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from router.api.auth import Caller
from router.api.context import InContext
from router.api.errors import ADMISSION, BODY, WAITING, Dialect, documented
from router.api.idempotency import IdempotencyKey, repeatable
from router.api.requests import json_only
from router.api.waiting import image_base64, make
from router.contract import INTERACTIVE
from router.contract.dialects.seed import GenerateRequest
from worker.contract import Frozen

router = APIRouter(tags=["seed-style"])


class GenerateResponse(Frozen):
    image: str = Field(description="A PNG file in base64.")


@router.post(
    "/generate",
    summary="Make an image and wait for it",
    dependencies=[Depends(json_only)],
    response_model=GenerateResponse,
    responses=documented(Dialect.SEED, *BODY, *ADMISSION, *WAITING),
)
async def generate(
    body: GenerateRequest,
    request: Request,
    context: InContext,
    key: Caller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Waits as long as it takes; closing the connection cancels the image."""
    repeated = repeatable(idempotency_key, request, body, waits=True)
    wanted = {**body.model_dump(), "seed": context.draw_seed()}
    (job,) = await make(context, request, key, INTERACTIVE, [wanted], repeated=repeated)
    # A GenerateResponse, put together as bytes: base64 holds nothing that JSON would escape, and there is much of it.
    image = await image_base64(context, job)
    response = Response(b'{"image":"%b"}' % image, media_type="application/json")
    if job.image and job.image.suspicion:
        response.headers["X-Is-Image-Safe"] = "false"  # the published answer has no field for it
    return response
