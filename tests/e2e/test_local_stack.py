"""The Makefile, driven as a user drives it: a stack comes up, serves, loses processes, is repaired, and goes."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.e2e.stack import REPOSITORY, UserStack, pasted_command
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine]

QUICK = {"prompt": "a small picture, at once", "width": 256, "height": 256, "steps": 1}
LONG = {"prompt": "a long look at a small machine", "width": 1024, "height": 1024, "steps": 100}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserStack]:
    """A stack of this module's own, brought up once; `deployed` holds what that printed."""
    stack = UserStack(tmp_path_factory.mktemp("e2e"))
    try:
        stack.deployed = stack.ok("deploy")
        yield stack
    finally:
        stack.make("destroy")


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def busy_worker(admin: str) -> str:
    """The name of a worker that is making an image now."""

    def running() -> str | None:
        views = httpx.get(f"{admin}/workers", trust_env=False).json()
        return next((view["name"] for view in views if view["running"]), None)

    return eventually(running, 60, "no worker took the job")


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_deploy_prints_an_endpoint_a_key_and_a_call_that_works_when_pasted(stack: UserStack, tmp_path: Path) -> None:
    assert f"http://127.0.0.1:{stack.ports[0]}" in stack.deployed
    assert "secrets/api-key" in stack.deployed
    command = pasted_command(stack.deployed)
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, env=stack.environment, check=True, timeout=60
    )
    (made,) = tmp_path.glob("*.png")
    assert picture(made.read_bytes()).size == (512, 512)


def test_deploying_again_changes_nothing_and_says_so(stack: UserStack) -> None:
    before = stack.units()
    assert "nothing to change" in stack.ok("deploy").lower()
    assert stack.units() == before


def test_the_published_clients_request_gets_a_png_of_the_asked_size(stack: UserStack) -> None:
    with stack.client() as client:
        answer = client.post("/generate", json={"prompt": "a", "width": 320, "height": 256, "steps": 4})
    assert answer.status_code == 200, answer.text
    assert picture(base64.b64decode(answer.json()["image"])).size == (320, 256)


def test_the_openai_client_gets_images_by_base64_and_by_url(stack: UserStack) -> None:
    endpoint = stack.endpoint()
    with openai.OpenAI(base_url=f"{endpoint['url']}/v1", api_key=endpoint["api_key"], max_retries=0) as client:
        steps = {"num_inference_steps": 2}
        inline = client.images.generate(prompt="a fox", size="256x256", extra_body=steps)
        linked = client.images.generate(prompt="a fox", size="256x256", response_format="url", extra_body=steps)
        assert [model.id for model in client.models.list()]
    assert inline.data
    assert linked.data
    assert picture(base64.b64decode(inline.data[0].b64_json or "")).size == (256, 256)
    assert picture(httpx.get(linked.data[0].url or "", trust_env=False).content).size == (256, 256)


def test_the_hosted_apis_published_call_gets_an_image_by_url(stack: UserStack) -> None:
    endpoint = stack.endpoint()
    call = ["curl", "-sS", "-X", "POST", f"{endpoint['url']}/v1/ideogram-v4/generate"]
    call += ["-H", f"Api-Key: {endpoint['api_key']}", "-F", "text_prompt=a fox", "-F", "resolution=256x256"]
    said = subprocess.run([*call, "-F", "rendering_speed=TURBO"], capture_output=True, check=True, timeout=120).stdout
    (image,) = json.loads(said)["data"]
    assert picture(httpx.get(image["url"], trust_env=False).content).size == (256, 256)
    refused = subprocess.run([*call, "-F", "rendering_speed=FLASH"], capture_output=True, check=True, timeout=60).stdout
    assert "FLASH is not served" in json.loads(refused)["error"]


def test_letterpress_generate_saves_an_image_that_says_what_made_it(stack: UserStack) -> None:
    stack.letterpress("generate", "a fox", "-o", "fox.png", "--size", "256x320", "--steps", "2", "--seed", "7")
    made = picture((stack.folder / "fox.png").read_bytes())
    record = json.loads(made.info["letterpress"])
    assert made.size == (256, 320)
    assert (record["prompt"], record["seed"], record["steps"], record["model"]) == ("a fox", 7, 2, "tiny")


def test_a_batch_that_is_killed_goes_on_and_loses_and_repeats_nothing(stack: UserStack) -> None:
    lines = [f"picture {number}" for number in range(1, 11)] + ['{"prompt": ', '{"id": "last", "prompt": "the end"}']
    (stack.folder / "prompts.jsonl").write_text("\n".join(lines))
    words = ("batch", "prompts.jsonl", "out", "--size", "256x256", "--steps", "2")
    index = stack.folder / "out/index.jsonl"

    def entries() -> list[dict[str, Any]]:
        return [json.loads(line) for line in index.read_text().splitlines()[1:]] if index.exists() else []

    def succeeded() -> list[dict[str, Any]]:
        return [entry for entry in entries() if entry["state"] == "succeeded"]

    first = subprocess.Popen(stack.words(*words), cwd=stack.folder, env=stack.environment, stderr=subprocess.DEVNULL)
    eventually(lambda: len(succeeded()) >= 2, 120, "no image was made")
    first.kill()
    first.wait()
    again = subprocess.run(
        stack.words(*words),
        cwd=stack.folder,
        env=stack.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert again.returncode == 3, again.stderr
    assert "line 11: begins like JSON and is not" in again.stderr
    assert "11 of 12 lines have their image in out" in again.stderr
    assert "cost $0.00" in again.stderr, "the local stack's machines cost nothing, and the stack knows"
    made = succeeded()
    assert sorted(entry["line"] for entry in made) == [*range(1, 11), 12]
    for entry in made:
        assert picture((stack.folder / "out" / entry["file"]).read_bytes()).size == (256, 256)
    with closing(_database(stack)) as database:
        (jobs,) = database.execute("select count(*) from jobs where request like '%picture %'").fetchone()
    assert jobs == 10


def test_the_openai_client_streams_and_gets_every_format(stack: UserStack) -> None:
    endpoint = stack.endpoint()
    with openai.OpenAI(base_url=f"{endpoint['url']}/v1", api_key=endpoint["api_key"], max_retries=0) as client:
        steps = {"num_inference_steps": 2}
        events = client.images.generate(
            prompt="a fox", model="gpt-image-1", size="256x256", stream=True, extra_body=steps
        )
        (event,) = list(events)
        assert event.type == "image_generation.completed"
        assert picture(base64.b64decode(event.b64_json)).size == (256, 256)
        for form in ("jpeg", "webp"):
            made = client.images.generate(
                prompt="a fox",
                size="256x256",
                output_format=form,
                output_compression=60,
                extra_body=steps,
            )
            assert made.data
            assert picture(base64.b64decode(made.data[0].b64_json or "")).format == form.upper()


def test_the_openai_client_makes_a_batch_from_its_upload_to_its_output(stack: UserStack) -> None:
    endpoint = stack.endpoint()
    body = {"prompt": "a fox", "size": "256x256", "num_inference_steps": 2}
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/images/generations", "body": {**body, "seed": n}}
        for n in range(4)
    ]
    lines.append({**lines[0], "custom_id": "wrong", "body": {**body, "size": "1x1"}})
    with openai.OpenAI(base_url=f"{endpoint['url']}/v1", api_key=endpoint["api_key"], max_retries=0) as client:
        content = "\n".join(json.dumps(line) for line in lines).encode()
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")

        def over() -> str | None:
            state = client.batches.retrieve(batch.id).status
            return state if state in ("completed", "failed", "expired", "cancelled") else None

        assert eventually(over, 60, "the batch did not end") == "completed"
        batch = client.batches.retrieve(batch.id)
        made = [json.loads(line) for line in client.files.content(batch.output_file_id or "").text.splitlines()]
        wrong = [json.loads(line) for line in client.files.content(batch.error_file_id or "").text.splitlines()]
    assert [line["custom_id"] for line in made] == ["0", "1", "2", "3"]
    assert picture(base64.b64decode(made[0]["response"]["body"]["data"][0]["b64_json"])).size == (256, 256)
    assert [(line["custom_id"], line["response"]["status_code"]) for line in wrong] == [("wrong", 400)]


def test_the_same_request_makes_the_same_bytes_on_either_worker(stack: UserStack) -> None:
    request = {"prompt": "twice the same", "width": 256, "height": 256, "steps": 3, "seed": 7}
    digests = set()
    with stack.client() as client:
        made = [client.post("/v1/jobs", json=request).json()["id"] for _ in range(4)]
        for job in made:
            view = eventually(lambda job=job: _ended(client, job), 60, f"{job} did not end")  # type: ignore[misc]
            digests.add(view["image"]["sha256"])
    assert len(digests) == 1


def test_a_batch_job_is_made_by_the_batch_pool(stack: UserStack) -> None:
    with stack.client() as client:
        job = client.post(
            "/v1/jobs", json={"prompt": "b", "width": 256, "height": 256, "steps": 1, "pool": "batch"}
        ).json()
        eventually(lambda: _ended(client, job["id"]), 60, "the batch job did not end")
    with closing(_database(stack)) as database:
        (worker,) = database.execute("select worker from attempts where job_id = ?", [job["id"]]).fetchone()
    assert worker == "batch-1"


def test_status_shows_every_process_with_its_pool_and_address(stack: UserStack) -> None:
    shown = stack.ok("status")
    for resource in ("edge", "router", "interactive-1", "interactive-2", "batch-1"):
        assert resource in shown
    for port in stack.ports:
        assert str(port) in shown
    assert "ready" in shown


def test_logs_hold_lines_of_every_process(stack: UserStack) -> None:
    shown = stack.ok("logs")
    for worker in ("interactive-1", "interactive-2", "batch-1"):
        assert re.search(rf'^{worker} +\| .*"event": "loaded"', shown, re.MULTILINE)
    assert re.search(r'^router +\| .*"event": "request"', shown, re.MULTILINE)
    assert re.search(r"^edge +\| ", shown, re.MULTILINE)


def test_one_request_is_followed_through_the_logs_of_edge_router_and_worker(stack: UserStack) -> None:
    name = f"follow-{uuid.uuid4().hex}"
    with stack.client() as client:
        answer = client.post(
            "/generate", json={"prompt": "a", "width": 256, "height": 256, "steps": 2}, headers={"X-Request-Id": name}
        )
    job = answer.headers["x-job-id"]

    def written() -> bool:
        lines = [json.loads(line) for line in _json_lines(stack)]
        edge = [line for line in lines if line.get("router_seconds") and line["request_id"] == name]
        router = [line for line in lines if line.get("event") == "request" and line.get("request_id") == name]
        attempts = [line for line in lines if line.get("event") == "attempt_ended" and line.get("job") == job]
        made = [line for line in lines if line.get("event") == "generation ended" and line.get("id") == f"{job}.1"]
        return bool(
            [line["job"] for line in edge] == [job]
            and [line["jobs"] for line in router] == [[job]]
            and attempts
            and made
        )

    eventually(written, 20, f"{name} and {job} are not in every log")


def _json_lines(stack: UserStack) -> list[str]:
    files = (stack.root / "logs").glob("**/*log*")
    return [line for file in files for line in file.read_text(errors="replace").splitlines() if line.startswith("{")]


def test_admin_prints_an_address_that_answers(stack: UserStack) -> None:
    shown = stack.ok("admin")
    admin = f"http://127.0.0.1:{stack.ports[1]}"
    assert admin in shown
    assert "interactive-1" in httpx.get(admin, trust_env=False).text


def test_a_key_is_made_limited_used_accounted_for_and_revoked(stack: UserStack) -> None:
    key = stack.letterpress("keys", "create", "team", "--per-minute", "5", "--pool", "interactive").strip()
    url = stack.endpoint()["url"]

    def ask(**more: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{url}/v1/jobs", json={**QUICK, **more}, headers=headers, timeout=60, trust_env=False)

    assert ask().status_code == 202
    assert ask(pool="batch").status_code == 403
    assert "5 requests a minute; only interactive" in stack.letterpress("keys", "list")
    assert "2 at once" in stack.letterpress("keys", "limit", "team", "--running", "2")

    def counted() -> str | None:
        said = stack.letterpress("keys", "usage", "team")
        return said if "GPU seconds" in said else None

    assert "all" in eventually(counted, 60, "the image is not accounted for")
    assert "is revoked" in stack.letterpress("keys", "revoke", "team")
    assert ask().status_code == 401


def test_the_database_is_backed_up_while_the_router_runs(stack: UserStack) -> None:
    assert "the schema is at revision" in stack.letterpress("db", "upgrade")
    assert "wrote" in stack.letterpress("db", "backup", "backup.sqlite")
    with closing(sqlite3.connect(stack.folder / "backup.sqlite")) as copied:
        (jobs,) = copied.execute("SELECT count(*) FROM jobs").fetchone()
    assert jobs > 0


def test_a_worker_killed_in_mid_generation_costs_its_client_nothing_and_deploy_repairs_it(
    stack: UserStack,
) -> None:
    with stack.client() as client, ThreadPoolExecutor(1) as background:
        admin = stack.endpoint()["admin_url"]  # before: a command takes as long as an image here
        waiting = background.submit(client.post, "/generate", json=LONG)
        victim = busy_worker(admin)
        before = stack.units()
        os.kill(before[victim], signal.SIGKILL)
        answer = waiting.result(timeout=120)
    assert answer.status_code == 200, answer.text
    assert picture(base64.b64decode(answer.json()["image"])).size == (1024, 1024)
    assert "stopped" in stack.ok("status")

    stack.ok("deploy")

    after = stack.units()
    assert after[victim] != before[victim]
    assert {name: pid for name, pid in after.items() if name != victim} == {
        name: pid for name, pid in before.items() if name != victim
    }
    assert "stopped" not in stack.ok("status")


@pytest.mark.parametrize("victim", ["edge", "router", "batch-1"])
def test_deploy_repairs_just_the_process_that_was_killed(stack: UserStack, victim: str) -> None:
    before = stack.units()
    os.kill(before[victim], signal.SIGKILL)
    stack.ok("deploy")
    after = stack.units()
    assert [name for name in before if after[name] != before[name]] == [victim]
    with stack.client() as client:
        assert client.post("/generate", json=QUICK).status_code == 200


def test_a_deploy_whose_reader_goes_away_goes_on_to_its_end(stack: UserStack) -> None:
    before = stack.units()
    os.kill(before["batch-1"], signal.SIGKILL)
    piped = f"{shlex.join(stack.command('deploy'))} | head -n 1"
    subprocess.run(["bash", "-c", piped], cwd=REPOSITORY, env=stack.environment, check=True, timeout=120)
    after = stack.units()
    assert [name for name in before if after[name] != before[name]] == ["batch-1"]
    assert "nothing to change" in stack.ok("deploy").lower()


def test_a_preview_shows_what_would_change_and_changes_nothing(stack: UserStack) -> None:
    text = stack.file.read_text()
    stack.file.write_text(text.replace("market: spot", "market: on_demand"))
    try:
        shown = stack.ok("preview")
    finally:
        stack.file.write_text(text)
    assert re.search(r"replace +Machine +batch-1", shown)
    assert "nothing to change" in stack.ok("preview").lower()


def test_a_router_killed_with_fifty_queued_jobs_finishes_each_exactly_once(stack: UserStack) -> None:
    request = {"prompt": "one of fifty", "width": 256, "height": 256, "steps": 2}
    with stack.client() as client:
        jobs = [client.post("/v1/jobs", json={**request, "seed": seed}).json()["id"] for seed in range(50)]
        os.kill(stack.units()["router"], signal.SIGKILL)
        stack.ok("deploy")
        for job in jobs:
            view = eventually(lambda job=job: _ended(client, job), 120, f"{job} did not end")  # type: ignore[misc]
            assert view["state"] == "succeeded"
    with closing(_database(stack)) as database:
        marks = ",".join("?" * len(jobs))
        finished = f"""select job_id, count(*) from attempts
                       where "end" = 'finished' and job_id in ({marks}) group by job_id"""  # noqa: S608 - question marks
        commits = database.execute(finished, jobs).fetchall()
    assert sorted(commits) == sorted((job, 1) for job in jobs)


def test_no_secret_is_in_the_state_the_logs_or_any_command_line(stack: UserStack) -> None:
    secrets = [path.read_text().strip().encode() for path in (stack.root / "secrets").iterdir()]
    assert len(secrets) >= 7
    searched = [
        *(stack.root / "pulumi").rglob("*"),
        *(stack.root / "logs").rglob("*"),
        *(path for path in Path("/proc").glob("[0-9]*/cmdline")),
    ]
    found = []
    for path in searched:
        try:
            content = path.read_bytes()
        except OSError:
            continue
        found += [path for secret in secrets if secret in content]
    assert found == []


def test_a_second_stack_runs_beside_the_first(stack: UserStack, tmp_path: Path) -> None:
    other = UserStack(tmp_path)
    try:
        other.ok("deploy")
        for one in (stack, other):
            with one.client() as client:
                answer = client.post("/generate", json=QUICK)
                assert answer.status_code == 200
        with other.client() as client:
            key = stack.endpoint()["api_key"]
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    finally:
        other.ok("destroy")
    assert other.processes() == []
    with stack.client() as client:
        assert client.get("/healthz").status_code == 200


def test_a_deploy_that_is_killed_in_mid_create_is_taken_up_by_the_next_one(tmp_path: Path) -> None:
    stack = UserStack(tmp_path)
    try:
        killed = subprocess.Popen(
            stack.command("deploy"),
            cwd=REPOSITORY,
            env=stack.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        begun = eventually(lambda: len(found := stack.units()) == 5 and found, 60, "not everything was begun")
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()

        assert "is up" in stack.ok("deploy")

        assert stack.units() == begun
        with stack.client() as client:
            assert client.post("/generate", json=QUICK).status_code == 200
    finally:
        stack.ok("destroy")
    assert stack.processes() == []


def test_destroy_leaves_no_process_no_port_and_an_empty_state(stack: UserStack) -> None:
    stack.ok("destroy")
    assert stack.processes() == []
    assert [port for port in stack.ports if listening(port)] == []
    assert list((stack.root / "pulumi" / ".pulumi" / "stacks").rglob("*.json")) == []
    assert "nothing" in stack.ok("destroy").lower()


def _ended(client: httpx.Client, job: str) -> dict[str, Any] | None:
    view: dict[str, Any] = client.get(f"/v1/jobs/{job}").raise_for_status().json()
    return view if view["state"] in ("succeeded", "failed", "cancelled") else None


def _database(stack: UserStack) -> sqlite3.Connection:
    (path,) = (stack.root / "router").rglob("*.db")
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)
