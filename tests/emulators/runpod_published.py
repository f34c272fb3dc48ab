"""RunPod's published description of REST v2 (its docs repository, 2026-08-20), to hold requests and answers to.

Both our client and our emulator are held to it, each against the other's: neither can drift alone.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator

from infra.emulate.server import Answer, Request

DESCRIPTION = json.loads((Path(__file__).parent / "runpod-openapi-v2.json").read_text())


@cache
def _operations() -> dict[str, dict[str, object]]:
    return {
        operation["operationId"]: operation
        for verbs in DESCRIPTION["paths"].values()
        for verb, operation in verbs.items()
        if verb in {"get", "post", "put", "patch", "delete"}
    }


def problems(request: Request, operation: str, answer: Answer) -> list[str]:
    """What of a request, or of its answer, is not as RunPod describes it."""
    described = _operations().get(operation)
    if described is None:
        return [f"{request.method} {request.path}: RunPod describes no such operation"]
    found = []
    body = described.get("requestBody")
    if isinstance(body, dict):
        schema = body["content"]["application/json"]["schema"]
        found += [f"{operation}: request: {each}" for each in _against(schema, request.body)]
    elif request.body is not None:
        found.append(f"{operation}: a body that it does not take")
    responses = described["responses"]
    assert isinstance(responses, dict)
    response = responses[str(answer.status)] if str(answer.status) in responses else responses["default"]
    if "$ref" in response:
        response = DESCRIPTION["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
    content = response.get("content")
    if content is None:
        return found + ([f"{operation}: an answer with a body"] if answer.data is not None else [])
    if answer.media_type not in content:
        return [*found, f"{operation}: {answer.media_type}, where {list(content)} is described"]
    schema = content[answer.media_type]["schema"]
    return found + [f"{operation}: answer {answer.status}: {each}" for each in _against(schema, answer.data)]


def _against(schema: dict[str, object], value: object) -> list[str]:
    whole = {**schema, "components": DESCRIPTION["components"]}
    errors = Draft202012Validator(whole).iter_errors(value)
    return [f"{'/'.join(map(str, error.absolute_path)) or '.'}: {error.message[:200]}" for error in errors]
