"""The local stack, asked as users ask it: every dialect, the command line, batches and keys."""

from __future__ import annotations

import base64
import json
import subprocess
from contextlib import closing
from typing import Any

import httpx
import openai
import pytest
from openai.types.webhooks import BatchCompletedWebhookEvent

from tests.e2e.stack import QUICK, UserStack, ended, picture
from tests.emulators.receiver import receiver_aside
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine]


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
    with closing(stack.database()) as database:
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


def test_the_openai_client_makes_a_batch_from_its_upload_to_the_verified_webhook(stack: UserStack) -> None:
    endpoint = stack.endpoint()
    body = {"prompt": "a fox", "size": "256x256", "num_inference_steps": 2}
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/images/generations", "body": {**body, "seed": n}}
        for n in range(4)
    ]
    lines.append({**lines[0], "custom_id": "wrong", "body": {**body, "size": "1x1"}})
    with (
        receiver_aside() as hook,
        openai.OpenAI(base_url=f"{endpoint['url']}/v1", api_key=endpoint["api_key"], max_retries=0) as client,
    ):
        content = "\n".join(json.dumps(line) for line in lines).encode()
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/images/generations",
            completion_window="24h",
            extra_body={"webhook": hook.receiver.url()},
        )

        def over() -> str | None:
            state = client.batches.retrieve(batch.id).status
            return state if state in ("completed", "failed", "expired", "cancelled") else None

        assert eventually(over, 60, "the batch did not end") == "completed"
        batch = client.batches.retrieve(batch.id)
        made = [json.loads(line) for line in client.files.content(batch.output_file_id or "").text.splitlines()]
        wrong = [json.loads(line) for line in client.files.content(batch.error_file_id or "").text.splitlines()]
        (sent,) = hook.has(1)
        with stack.client() as http:
            (secret,) = http.get("/v1/webhooks/secrets").raise_for_status().json()["secrets"]
        event = client.webhooks.unwrap(sent.body.decode(), sent.headers, secret=secret)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(sent.body.decode().replace("completed", "cancelled"), sent.headers, secret=secret)
    assert isinstance(event, BatchCompletedWebhookEvent)
    assert event.data.id == batch.id
    assert [line["custom_id"] for line in made] == ["0", "1", "2", "3"]
    assert picture(base64.b64decode(made[0]["response"]["body"]["data"][0]["b64_json"])).size == (256, 256)
    assert [(line["custom_id"], line["response"]["status_code"]) for line in wrong] == [("wrong", 400)]


def test_the_same_request_makes_the_same_bytes_on_either_worker(stack: UserStack) -> None:
    request = {"prompt": "twice the same", "width": 256, "height": 256, "steps": 3, "seed": 7}
    digests = set()
    with stack.client() as client:
        made = [client.post("/v1/jobs", json=request).json()["id"] for _ in range(4)]
        for job in made:
            view = eventually(lambda job=job: ended(client, job), 60, f"{job} did not end")  # type: ignore[misc]
            digests.add(view["image"]["sha256"])
    assert len(digests) == 1


def test_a_batch_job_is_made_by_the_batch_pool(stack: UserStack) -> None:
    with stack.client() as client:
        job = client.post(
            "/v1/jobs", json={"prompt": "b", "width": 256, "height": 256, "steps": 1, "pool": "batch"}
        ).json()
        eventually(lambda: ended(client, job["id"]), 60, "the batch job did not end")
    with closing(stack.database()) as database:
        (worker,) = database.execute("select worker from attempts where job_id = ?", [job["id"]]).fetchone()
    assert worker == "batch-1"


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
