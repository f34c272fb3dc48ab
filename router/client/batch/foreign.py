"""A line in the form of OpenAI's Batch API, as the JobRequest that it means. Pure; its body is read as the router's own
dialects read it (`router.contract.dialects`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.client.batch.errors import BadLineError
from router.contract.dialects.images import BatchedImagesRequest, particular
from router.contract.dialects.seed import GenerateRequest
from worker.contract import ImageFormat

IMAGES, GENERATE, JOBS = "/v1/images/generations", "/generate", "/v1/jobs"

Fields = dict[str, Any]


def fields_of(line: Mapping[str, Any], form: ImageFormat | None) -> Fields:
    """The JobRequest's fields, as far as the line says them; `form` is the batch's own, which a line may lean on.

    Raises BadLineError for what a batch cannot serve, ValidationError for what is no request of its dialect.
    """
    if unknown := line.keys() - {"method", "url", "body"}:
        raise BadLineError(f"{', '.join(sorted(unknown))}: is not a field of a batch's line")
    if line.get("method", "POST") != "POST":
        raise BadLineError(f"method: {str(line['method'])[:60]!r} is not POST")
    match line.get("url"):
        case None | "/v1/jobs":
            return dict(line["body"])
        case "/generate":
            asked = GenerateRequest.model_validate(line["body"])
            return {"steps": asked.steps, **asked.model_dump(exclude_unset=True)}
        case "/v1/images/generations":
            return _of_images(line["body"], form)
        case other:
            raise BadLineError(f"url: {str(other)[:60]!r} is none of {IMAGES}, {JOBS}, {GENERATE}")


def _of_images(body: Mapping[str, Any], form: ImageFormat | None) -> Fields:
    leaning = {} if form is None or body.get("output_format") is not None else {"output_format": form}
    asked = BatchedImagesRequest.model_validate({**body, **leaning})
    if asked.n not in (None, 1):
        raise BadLineError(f"n: {asked.n} cannot be served: a line is one image")
    fields = asked.said()
    if leaning:
        del fields["format"]
    if (model := particular(asked.model)) is not None:
        fields["model"] = model
    if "pool" in asked.model_fields_set:
        fields["pool"] = asked.pool
    return fields
