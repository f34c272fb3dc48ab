"""OpenAI's Files and Batches through OpenAI's own client, for tests: what is sent, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

import httpx
import httpx2
import openai
from openai.types import Batch

from tests.emulators.pace import Pace
from tests.integration.router.served import API_KEY, PUBLIC_URL, ServedRouter, until

ENDPOINT: Literal["/v1/images/generations"] = "/v1/images/generations"
SMALL: dict[str, object] = {"prompt": "a press", "size": "256x256", "num_inference_steps": 1}
QUICK = Pace(step_s=0.001, tail_s=0.001)


def client_of(router: ServedRouter, key: str = API_KEY) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(transport=httpx2.AsyncHTTPTransport(uds=router.socket))
    return openai.AsyncOpenAI(base_url=f"{PUBLIC_URL}/v1", api_key=key, http_client=http, max_retries=0)


def line(custom_id: str, url: str = ENDPOINT, method: str = "POST", **body: object) -> dict[str, object]:
    return {"custom_id": custom_id, "method": method, "url": url, "body": {**SMALL, **body}}


def spelled(lines: Iterable[dict[str, object]]) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in lines)


async def made(client: openai.AsyncOpenAI, content: bytes, window: str = "24h", **more: object) -> Batch:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id,
        endpoint=ENDPOINT,
        completion_window=window,  # type: ignore[arg-type]
        extra_body=more,
    )


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async def over() -> bool:
        return (await client.batches.retrieve(batch.id)).status in ("completed", "failed", "expired", "cancelled")

    await until(over, f"{batch.id} has ended", within_s=600)
    return await client.batches.retrieve(batch.id)


async def lines_in(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """By custom id."""
    assert file_id is not None
    text = (await client.files.content(file_id)).text
    return {one["custom_id"]: one for one in map(json.loads, text.splitlines())}


async def jobs_of(router: ServedRouter, batch: Batch, key: str = API_KEY) -> list[dict[str, Any]]:
    """As the native API lists them."""
    found, after = list[dict[str, Any]](), ""
    async with router.http(key) as http:
        while True:
            params = httpx.QueryParams(batch=batch.id, limit=500, **({"after": after} if after else {}))
            page = (await http.get("/v1/jobs", params=params)).json()
            found += page["data"]
            if not page["has_more"]:
                return found
            after = found[-1]["id"]
