"""Schemathesis asks every route of the published document what nobody thought of, alone and in sequences.

The router is real, its worker is paced. What counts: no 5xx but those that are promised (a pool that nobody works
for, what is not served), and no answer that the document does not describe. `make soak` asks longer.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.generation.stateful.state_machine import StepInput, StepOutput
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from tests.emulators.pace import Pace
from tests.emulators.paced_process import paced_worker
from tests.integration.router.served import ADMIN_KEY, API_KEY, ServedRouter, served_router

Case = schemathesis.Case[Any]
EXAMPLES = 6
SOAK_EXAMPLES = 150
RUNS, SOAK_RUNS = 12, 60
STEPS = 8
MOST_RUNS = 120
NAMING = {
    "DELETE /v1/files/{file_id}",
    "DELETE /v1/jobs/{job_id}",
    "GET /artifacts/{job_id}.png",
    "GET /v1/batches/{batch_id}",
    "GET /v1/files/{file_id}",
    "GET /v1/files/{file_id}/content",
    "GET /v1/jobs/{job_id}",
    "GET /v1/jobs/{job_id}/events",
    "GET /v1/jobs/{job_id}/image",
    "GET /v1/models/{model}",
    "POST /v1/batches",
    "POST /v1/batches/{batch_id}/cancel",
    "POST /v1/jobs/{job_id}/retry",
}
"""The routes whose path or fields name what another route's answer has made; but for generations, which begin only
with a webhook that could be reached."""
CALLER, OPERATOR = ({"Authorization": f"Bearer {key}"} for key in (API_KEY, ADMIN_KEY))
PROMISED = {501: ("not_served", "is not served here"), 503: ("pool_unavailable", "unmakeable")}


def only_promised_errors(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: Case
) -> bool | None:
    """5xx that say what they mean are part of the promise; the others are ours to mend."""
    if response.status_code >= 500:
        if case.operation.path == "/readyz" and response.status_code == 503:
            return None  # its way to say no
        said = PROMISED.get(response.status_code)
        assert said is not None, f"{response.status_code}: {response.text[:500]}"
        assert any(each in response.text for each in said), response.text[:500]
        assert response.status_code == 501 or response.headers.get("retry-after")
    return None


CHECKS: list[CheckFunction] = [
    only_promised_errors,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
BRIEF = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
LONG = settings(BRIEF, max_examples=SOAK_EXAMPLES, derandomize=False)
SEQUENCES = settings(BRIEF, derandomize=False)


@schemathesis.serializer("application/x-ndjson")
def _lines(_context: schemathesis.SerializationContext, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


@dataclass(frozen=True)
class Urls:
    public: str
    admin: str


@pytest.fixture(scope="module")
def urls() -> Iterator[Urls]:
    """The router's, by TCP: what Schemathesis speaks. Everything runs on a loop of its own, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = AsyncExitStack()
    try:
        yield asyncio.run_coroutine_threadsafe(_serve(stack), loop).result(180)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(180)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve(stack: AsyncExitStack) -> Urls:
    worker = await stack.enter_async_context(paced_worker(Pace(step_s=0, tail_s=0)))
    router = await stack.enter_async_context(served_router())
    await router.use("w-1", worker)
    await router.use("b-1", await stack.enter_async_context(paced_worker(Pace(step_s=0, tail_s=0))), "batch")
    server = await asyncio.start_server(_forward_to(router), "127.0.0.1", 0)
    stack.push_async_callback(server.wait_closed)
    stack.callback(server.close)
    return Urls(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", router.admin_url)


def _forward_to(router: ServedRouter) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()

    async def forward(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, on = await asyncio.open_unix_connection(router.socket)
        await asyncio.gather(pump(near, on), pump(far, back))

    return forward


@pytest.fixture(scope="module")
def document(urls: Urls) -> OpenApiSchema:
    return schemathesis.openapi.from_url(f"{urls.public}/openapi.json")


@pytest.fixture(scope="module")
def admin_document(urls: Urls) -> OpenApiSchema:
    return schemathesis.openapi.from_url(f"{urls.admin}/openapi.json")


def _operations(document: OpenApiSchema) -> list[APIOperation[Any, Any, Any, Any]]:
    found = list(document.get_all_operations())
    assert all(isinstance(each, Ok) for each in found)
    operations = [each.ok() for each in found if isinstance(each, Ok)]
    assert len(operations) == sum(map(len, document.raw_schema["paths"].values()))
    return operations


def _ask_each(document: OpenApiSchema, how: settings, mode: GenerationMode, headers: dict[str, str] = CALLER) -> None:
    """Every route as often as `how` says, or for each of what it has to be asked with; whether by what the document
    allows, or by what it does not."""
    requests, asked = Counter[str](), 0
    for operation in _operations(document):
        if mode is GenerationMode.NEGATIVE and not _can_be_asked_wrongly(operation):
            continue

        @how
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Case) -> None:
            requests[case.operation.label] += 1
            case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)

        ask()
        asked += 1
    assert len(requests) == asked
    print(f"asked {asked} routes {requests.total()} times, {mode.value}")


def _can_be_asked_wrongly(operation: APIOperation[Any, Any, Any, Any]) -> bool:
    """Whether it has a body, or a parameter that is more than any text."""
    described = operation.definition.raw
    schemas = [parameter["schema"] for parameter in described.get("parameters", ())]
    return "requestBody" in described or any(schema.keys() - {"type", "title", "default"} for schema in schemas)


@pytest.mark.parametrize("app", ["document", "admin_document"])
def test_every_refusal_is_documented_by_its_status(app: str, request: pytest.FixtureRequest) -> None:
    for path, methods in request.getfixturevalue(app).raw_schema["paths"].items():
        for method, operation in methods.items():
            statuses = operation["responses"].keys()
            assert all(status.isdecimal() for status in statuses), (method, path, statuses)
            if not {"health", "page"} & set(operation.get("tags", ())):
                assert {"500", "503"} <= statuses, (method, path, statuses)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_route_answers_as_described(document: OpenApiSchema, mode: GenerationMode) -> None:
    _ask_each(document, BRIEF, mode)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_route_of_the_admin_app_answers_as_described(admin_document: OpenApiSchema, mode: GenerationMode) -> None:
    _ask_each(admin_document, BRIEF, mode, OPERATOR)


@pytest.mark.soak
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_route_answers_as_described_for_long(document: OpenApiSchema, mode: GenerationMode) -> None:
    _ask_each(document, LONG, mode)


def _follow(document: OpenApiSchema, how: settings, runs: int) -> None:
    """At least `runs` sequences, and more until every route that names something of an earlier answer's was asked with
    such a name.

    What is drawn next depends on what was answered, and a router never answers the same twice: Hypothesis calls that
    flaky, and ends that run. What counts is gathered here.
    """
    asked, wrong, followed = 0, list[BaseException](), Counter[str]()

    class Machine(document.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, _case: Case) -> dict[str, object]:
            return {"headers": CALLER, "timeout": 60}

        def step(self, input: StepInput) -> StepOutput:  # noqa: A002 - the parent's name
            output: StepOutput = super().step(input)
            if input.transition is not None and input.applied_parameters:
                followed[input.case.operation.label] += 1
            return output

        def validate_response(self, response: schemathesis.Response, case: Case, **_more: object) -> None:
            nonlocal asked
            asked += 1
            try:
                case.validate_response(response, checks=CHECKS)
            except FailureGroup as failed:
                wrong.append(failed)

    run = 0
    while run < runs or (followed.keys() != NAMING and run < MOST_RUNS):
        with suppress(Flaky):
            seed(run)(Machine).run(settings=how)
        run += 1
    if wrong:
        raise wrong[0]
    print(f"asked {asked} times in {run} sequences, {followed.total()} times with what an answer before had named")
    assert followed.keys() == NAMING


def test_what_one_answer_names_can_be_asked_after(document: OpenApiSchema) -> None:
    _follow(document, settings(SEQUENCES, stateful_step_count=STEPS), RUNS)


@pytest.mark.soak
def test_what_one_answer_names_can_be_asked_after_for_long(document: OpenApiSchema) -> None:
    _follow(document, settings(SEQUENCES, stateful_step_count=3 * STEPS), SOAK_RUNS)
