"""Each dialect, as the edge sees it: images, and every way that bad input goes.

One router process and one paced worker serve the whole file; pool `batch` has no worker.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import httpx
import pytest
import pytest_asyncio

from tests.emulators.plain_png import png
from tests.integration.router.served import ServedRouter, served_router, until
from worker.contract import GenerationRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
PROMPT = "a letterpress print shop at night"


@dataclass(frozen=True)
class Dialect:
    """A dialect's words for the same requests, and where in its errors the text stands."""

    path: str
    invalid: int
    size: str
    steps: Mapping[str, object]
    wide: Mapping[str, object]
    small: Mapping[str, object] = field(default_factory=dict)

    def said(self, answer: httpx.Response) -> str:
        body = answer.json()
        match self.path:
            case "/generate":
                assert body.keys() == {"detail"}
                return str(body["detail"])
            case "/v1/images/generations":
                assert body.keys() == {"error"}
                assert body["error"].keys() == {"message", "type", "param", "code"}
                return str(body["error"]["message"])
            case _:
                assert answer.headers["content-type"] == "application/problem+json"
                assert body.keys() == {"type", "title", "status", "detail", "errors"}
                assert body["status"] == answer.status_code
                return str(body["detail"])


SEED = Dialect("/generate", 422, "width", {"steps": 0}, {"width": 1000}, {"width": 256, "height": 256, "steps": 2})
OPENAI = Dialect(
    "/v1/images/generations",
    400,
    "size",
    {"num_inference_steps": 0},
    {"size": "1000x1024"},
    {"size": "256x256", "num_inference_steps": 2},
)
NATIVE = Dialect("/v1/jobs", 422, "width", {"steps": 0}, {"width": 1000}, {"width": 256, "height": 256, "steps": 2})
every_dialect = pytest.mark.parametrize("dialect", [SEED, OPENAI, NATIVE], ids=lambda dialect: dialect.path)


@pytest_asyncio.fixture(loop_scope="module")
async def http(router: ServedRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with router.http() as client:
        yield client


async def test_the_published_clients_request_is_answered_with_a_png_of_the_asked_size(http: httpx.AsyncClient) -> None:
    answer = await http.post("/generate", json={"prompt": PROMPT, "width": 512, "height": 256, "steps": 3})
    assert answer.status_code == 200
    assert answer.json().keys() == {"image"}
    image = base64.b64decode(answer.json()["image"], validate=True)
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(image[16:20]), int.from_bytes(image[20:24])) == (512, 256)


async def test_what_the_published_client_leaves_out_is_1024_by_1024_in_25_steps(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert {name: fields[name].get("default") for name in fields} == {
        "prompt": None,
        "width": 1024,
        "height": 1024,
        "steps": 25,
    }


@every_dialect
async def test_width_1000_is_refused_with_the_sizes_that_can_be_made(http: httpx.AsyncClient, dialect: Dialect) -> None:
    answer = await http.post(dialect.path, json={"prompt": PROMPT, **dialect.wide})
    assert answer.status_code == dialect.invalid
    assert dialect.said(answer) == (
        f"{dialect.size}: 1000 is not a multiple of 16; the nearest that can be made: 992 or 1008"
    )


@every_dialect
async def test_no_steps_are_refused(http: httpx.AsyncClient, dialect: Dialect) -> None:
    answer = await http.post(dialect.path, json={"prompt": PROMPT, **dialect.steps})
    assert answer.status_code == dialect.invalid
    assert dialect.said(answer) == f"{next(iter(dialect.steps))}: 0 is too small; the smallest is 1"


@every_dialect
@pytest.mark.parametrize("steps", [True, "20", 20.5])
async def test_steps_that_are_no_whole_number_are_refused(
    http: httpx.AsyncClient, dialect: Dialect, steps: object
) -> None:
    (name,) = dialect.steps
    answer = await http.post(dialect.path, json={"prompt": PROMPT, name: steps})
    assert answer.status_code == dialect.invalid
    assert dialect.said(answer) == f"{name}: {json.dumps(steps)} is not a whole number"


@pytest.mark.parametrize("dialect", [SEED, NATIVE], ids=lambda dialect: dialect.path)
async def test_a_width_in_quotes_is_refused(http: httpx.AsyncClient, dialect: Dialect) -> None:
    answer = await http.post(dialect.path, json={"prompt": PROMPT, "width": "256"})
    assert answer.status_code == dialect.invalid
    assert dialect.said(answer) == 'width: "256" is not a whole number'


@every_dialect
@pytest.mark.parametrize("prompt", ["", " \n\t"])
async def test_an_empty_prompt_is_refused(http: httpx.AsyncClient, dialect: Dialect, prompt: str) -> None:
    answer = await http.post(dialect.path, json={"prompt": prompt})
    assert answer.status_code == dialect.invalid
    assert dialect.said(answer) in ("prompt: is empty", "prompt: is blank; say what the image should show")


@pytest.mark.parametrize("dialect", [SEED, OPENAI], ids=lambda dialect: dialect.path)
async def test_a_prompt_of_3000_tokens_comes_back_with_the_workers_reason(
    http: httpx.AsyncClient, dialect: Dialect
) -> None:
    answer = await http.post(dialect.path, json={"prompt": "word " * 3000, **dialect.small})
    assert answer.status_code == dialect.invalid
    assert "3000 tokens" in dialect.said(answer)


async def test_a_native_job_with_3000_tokens_fails_with_the_workers_reason(router: ServedRouter) -> None:
    async with router.http() as http, router.client() as client:
        accepted = await http.post("/v1/jobs", json={"prompt": "word " * 3000})
        assert accepted.status_code == 202
        job = await client.wait(accepted.json()["id"])
    assert (job.state, job.attempt) == ("failed", 1)
    assert job.error is not None
    assert job.error.type == "invalid_request"
    assert "3000 tokens" in job.error.detail


@every_dialect
async def test_unknown_fields_are_refused_by_name(http: httpx.AsyncClient, dialect: Dialect) -> None:
    answer = await http.post(dialect.path, json={"prompt": PROMPT, "strength": 7})
    assert answer.status_code == dialect.invalid
    assert dialect.said(answer) == "strength: is not a field of this request"


@every_dialect
@pytest.mark.parametrize("key", ["wrong", ""])
async def test_a_wrong_or_missing_key_is_refused(router: ServedRouter, dialect: Dialect, key: str) -> None:
    async with router.http(key) as stranger:
        answer = await stranger.post(dialect.path, json={"prompt": PROMPT})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "API key" in dialect.said(answer)


@every_dialect
async def test_a_key_is_looked_at_before_the_request(router: ServedRouter, dialect: Dialect) -> None:
    async with router.http("wrong") as stranger:
        assert (await stranger.post(dialect.path, json={"nonsense": 1})).status_code == 401


@pytest.mark.parametrize("dialect", [OPENAI, NATIVE], ids=lambda dialect: dialect.path)
async def test_a_pool_without_workers_is_503_with_retry_after(http: httpx.AsyncClient, dialect: Dialect) -> None:
    answer = await http.post(dialect.path, json={"prompt": PROMPT, "pool": "batch"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "pool batch: no worker is registered" in dialect.said(answer)


async def test_the_seed_dialect_without_a_worker_is_503_with_retry_after() -> None:
    async with served_router() as empty, empty.http() as http:
        answer = await http.post("/generate", json={"prompt": PROMPT})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "pool interactive: no worker is registered" in SEED.said(answer)


@every_dialect
async def test_a_body_of_50_mb_is_refused_by_its_length(http: httpx.AsyncClient, dialect: Dialect) -> None:
    body = b'{"prompt": "' + b"x" * (50 * MIB) + b'"}'
    answer = await http.post(dialect.path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert dialect.said(answer) == "the body is larger than 1048576 bytes"


@every_dialect
async def test_a_body_that_does_not_say_its_length_is_refused_when_it_has_passed_the_bound(
    http: httpx.AsyncClient, dialect: Dialect
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * MIB

    answer = await http.post(dialect.path, content=pieces(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert dialect.said(answer) == "the body is larger than 1048576 bytes"


@every_dialect
async def test_a_body_that_is_not_json_is_told_where_it_breaks(http: httpx.AsyncClient, dialect: Dialect) -> None:
    answer = await http.post(dialect.path, content=b'{"prompt": ', headers={"Content-Type": "application/json"})
    assert answer.status_code == (422 if dialect is SEED else 400)
    assert dialect.said(answer) == "the body is not JSON: Expecting value at character 11"


@every_dialect
@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b"1" * 5_000], ids=["bytes", "depth", "digits"])
async def test_a_body_that_no_parser_likes_is_the_callers_fault(
    http: httpx.AsyncClient, dialect: Dialect, body: bytes
) -> None:
    answer = await http.post(dialect.path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert dialect.said(answer)


@every_dialect
async def test_a_body_of_another_type_is_415(http: httpx.AsyncClient, dialect: Dialect) -> None:
    answer = await http.post(dialect.path, data={"prompt": PROMPT})
    assert answer.status_code == 415
    assert "application/json" in dialect.said(answer)


@every_dialect
async def test_a_wrong_method_is_405_and_says_the_right_one(http: httpx.AsyncClient, dialect: Dialect) -> None:
    answer = await http.put(dialect.path, json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert dialect.said(answer) == "use POST here"


@pytest.mark.parametrize("path", ["/generate/more", "/v1/images/more", "/v1/files/x/more", "/nowhere"])
async def test_an_unknown_path_is_404_in_the_dialect_that_it_begins_with(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert answer.status_code == 404
    body = answer.json()
    assert "there is nothing at this path" in str(body.get("detail") or body["error"]["message"])


async def test_every_answer_carries_a_request_id_and_the_edges_is_kept(http: httpx.AsyncClient) -> None:
    assert len((await http.get("/nowhere")).headers["x-request-id"]) == 32
    kept = await http.get("/healthz", headers={"X-Request-Id": "from-the-edge.1"})
    assert kept.headers["x-request-id"] == "from-the-edge.1"
    drawn = await http.get("/healthz", headers={"X-Request-Id": 'bad"id'})
    assert len(drawn.headers["x-request-id"]) == 32


async def test_the_log_says_which_request_made_which_job_and_no_prompt_and_no_key(router: ServedRouter) -> None:
    async with router.http() as http:
        await http.post(
            "/generate", json={"prompt": "zinc-and-vellum", **SEED.small}, headers={"X-Request-Id": "find-me"}
        )

    async def written() -> bool:
        return '"find-me"' in router.log

    await until(written, "the request's line, which comes after its answer")
    lines = [json.loads(line) for line in router.log.splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "find-me" and line["event"] == "request"]
    assert (line["status"], line["api_key"]) == (200, "default")
    assert line["jobs"][0].startswith("job_")
    assert "zinc-and-vellum" not in router.log
    assert "lp_api" not in router.log


async def test_health_needs_no_key_and_names_the_pools_that_are_ready(router: ServedRouter) -> None:
    async with router.http("") as stranger:
        health = (await stranger.get("/healthz")).json()
    assert (health["status"], health["ready_pools"]) == ("ok", ["interactive"])


async def test_the_published_description_is_complete(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["tags"], where
            assert operation["summary"], where
            assert "HTTPValidationError" not in str(operation), f"{where}: FastAPI's own error shape is not ours"
            errors = {status for status in operation["responses"] if status[0] in "45d"}
            assert errors, f"{where}: says nothing of errors"
    refused = {at: one for at, one in document["paths"]["/v1/jobs"]["post"]["responses"].items() if at[0] in "45"}
    assert {"401", "422", "429", "503"} <= refused.keys()
    assert all("application/problem+json" in one["content"] for one in refused.values())
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert "cdn" not in json.dumps(document)


async def test_the_same_seed_makes_the_same_image(router: ServedRouter) -> None:
    request = GenerationRequest(prompt=PROMPT, seed=7, width=256, height=256, steps=2)
    async with router.http() as http:
        body = {"prompt": PROMPT, "seed": 7, "size": "256x256", "num_inference_steps": 2}
        answer = await http.post("/v1/images/generations", json=body)
    image = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert hashlib.sha256(image).digest() == hashlib.sha256(png(request)).digest()
