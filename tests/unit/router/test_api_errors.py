"""One refusal, four dialects; and every error that a request can end in has its refusal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from starlette.exceptions import HTTPException

from router.api.batch_lines import why
from router.api.errors import Dialect, answer, dialect_of
from router.api.explain import Fault, FaultCode
from router.api.refusals import Kind, Refusal, of_faults, of_job, refusal_of, stopping, unauthorized
from router.batches import DoneLine
from router.batches.desk import no_room
from router.contract import JobState
from router.contract.names import UNMAKEABLE
from router.errors import PoolUnavailableError, QueueFullError, StoreUnavailableError
from router.jobs import Job, JobError
from worker.contract import GenerationRequest, Problem

WIDTH = of_faults((Fault(("width",), "1000 is not a multiple of 16"),))


def _body(refusal: Refusal, dialect: Dialect, request_id: str = "") -> dict[str, object]:
    body = json.loads(bytes(answer(refusal, dialect, request_id).body))
    assert isinstance(body, dict)
    return body


def _job(state: JobState, error: JobError | None = None) -> Job:
    request = GenerationRequest(prompt="a", seed=1)
    return Job("job_1", "key_1", "interactive", state, request, 1, 0, 0, 0, None, error)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/generate", Dialect.SEED),
        ("/generate/x", Dialect.SEED),
        ("/generated", Dialect.PROBLEM),
        ("/v1/images/generations", Dialect.OPENAI),
        ("/v1/images", Dialect.OPENAI),
        ("/v1/models/a/b", Dialect.OPENAI),
        ("/v1/modelsx", Dialect.PROBLEM),
        ("/v1/ideogram-v4/generate", Dialect.IDEOGRAM),
        ("/v1/ideogram-v3/remix", Dialect.IDEOGRAM),
        ("/v1/generations/job_1", Dialect.IDEOGRAM),
        ("/upscale", Dialect.IDEOGRAM),
        ("/v1/ideogram-v5/generate", Dialect.PROBLEM),
        ("/v1/jobs", Dialect.PROBLEM),
        ("/", Dialect.PROBLEM),
    ],
)
def test_the_path_chooses_the_dialect(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


def test_the_seed_dialect_says_it_in_one_line() -> None:
    assert answer(WIDTH, Dialect.SEED).status_code == 422
    assert _body(WIDTH, Dialect.SEED) == {"detail": "width: 1000 is not a multiple of 16"}


def test_openai_names_the_parameter_and_calls_it_400() -> None:
    assert answer(WIDTH, Dialect.OPENAI).status_code == 400
    assert _body(WIDTH, Dialect.OPENAI) == {
        "error": {
            "message": "width: 1000 is not a multiple of 16",
            "type": "invalid_request_error",
            "param": "width",
            "code": "invalid_value",
        }
    }


def test_openai_has_its_own_code_for_an_unknown_field() -> None:
    body = _body(of_faults((Fault(("foo",), "is not a field", FaultCode.UNKNOWN),)), Dialect.OPENAI)
    assert body["error"] == {
        "message": "foo: is not a field",
        "type": "invalid_request_error",
        "param": "foo",
        "code": "unknown_parameter",
    }


def test_problem_details_list_every_fault() -> None:
    response = answer(WIDTH, Dialect.PROBLEM)
    problem = Problem.model_validate_json(bytes(response.body))
    assert response.media_type == "application/problem+json"
    assert (problem.status, problem.type) == (422, "invalid_request")
    assert problem.errors == ["width: 1000 is not a multiple of 16"]


@pytest.mark.parametrize("dialect", Dialect)
def test_an_unknown_key_is_told_how_to_authenticate(dialect: Dialect) -> None:
    response = answer(unauthorized("no key").refusal, dialect)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


def test_openai_clients_know_a_wrong_key_by_its_code() -> None:
    body = _body(unauthorized("no key").refusal, Dialect.OPENAI)
    assert body["error"] == {
        "message": "no key",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize(
    ("error", "retry_after"),
    [
        (PoolUnavailableError("batch", "nobody", 30), "30"),
        (QueueFullError("batch", 9, 7), "7"),
        (StoreUnavailableError("locked"), "2"),
        (stopping(), "2"),
    ],
)
def test_what_may_pass_is_503_and_says_when_to_ask_again(error: Exception, retry_after: str, dialect: Dialect) -> None:
    response = answer(refusal_of(error), dialect)
    assert (response.status_code, response.headers["retry-after"]) == (503, retry_after)


@pytest.mark.parametrize("dialect", Dialect)
def test_an_internal_error_names_the_request_and_nothing_else(dialect: Dialect) -> None:
    response = answer(refusal_of(RuntimeError("/secret/path")), dialect, "request-1")
    assert response.status_code == 500
    assert b"request-1" in bytes(response.body)
    assert b"secret" not in bytes(response.body)


def test_a_broken_body_is_422_where_fastapi_would_say_so_and_400_elsewhere() -> None:
    refusal = Refusal(Kind.INVALID_JSON, "no")
    assert [answer(refusal, dialect).status_code for dialect in Dialect] == [422, 400, 400, 400]


def test_a_wrong_method_keeps_its_allow_header() -> None:
    response = answer(refusal_of(HTTPException(405, headers={"Allow": "POST"})), Dialect.PROBLEM)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_a_prompt_that_the_worker_refuses_is_the_callers_fault() -> None:
    job = _job(JobState.FAILED, JobError("invalid_request", "prompt: has 3000 tokens"))
    refusal = of_job(job)
    assert [answer(refusal, dialect).status_code for dialect in Dialect] == [422, 400, 400, 422]
    assert refusal.faults == (Fault(("prompt",), "has 3000 tokens"),)


def test_a_job_that_crashed_is_502_and_openai_clients_do_not_repeat_it() -> None:
    refusal = of_job(_job(JobState.FAILED, JobError("engine_error", "crashed on a, b")))
    response = answer(refusal, Dialect.OPENAI)
    assert (response.status_code, response.headers["x-should-retry"]) == (502, "false")
    assert "crashed on a, b" in refusal.detail


def test_a_job_that_somebody_cancelled_is_a_conflict() -> None:
    assert of_job(_job(JobState.CANCELLED)).kind is Kind.CANCELLED


def test_every_kind_has_a_status_and_a_headline() -> None:
    assert all(400 <= kind.status <= 599 and kind.headline for kind in Kind)


def test_a_batchs_line_that_no_worker_can_make_has_the_code_that_its_request_would_have_had() -> None:
    vain = _job(JobState.FAILED, JobError(UNMAKEABLE, "pool batch: no worker there could make images of its size"))
    refusal = why(DoneLine(1, "a", by_url=False, refusal=None, jobs=[vain]))
    assert refusal is not None
    assert (refusal.code, refusal.status, refusal.message) == ("unmakeable", 503, vain.error and vain.error.detail)


@pytest.mark.parametrize(("by_url", "advice"), [(False, "ask again, with response_format url"), (True, "ask again")])
def test_a_line_without_room_names_all_its_jobs_and_is_told_only_what_helps(by_url: bool, advice: str) -> None:
    jobs = [replace(_job(JobState.SUCCEEDED), id=f"job_{n}") for n in (1, 2)]
    said = no_room(DoneLine(1, "a", by_url=by_url, refusal=None, jobs=jobs)).message
    assert "(GET /v1/jobs/{id}/image of job_1, job_2)" in said
    assert said.endswith(advice)
