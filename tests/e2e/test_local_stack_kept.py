"""The Makefile, driven as a user drives it: a stack comes up, loses processes, is repaired, and goes.

What it is asked for meanwhile is `test_local_stack_asked`'s, which comes before; here the stack ends.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.e2e.stack import QUICK, REPOSITORY, UserStack, ended, pasted_command, picture
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine]

LONG = {"prompt": "a long look at a small machine", "width": 1024, "height": 1024, "steps": 100}


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
        admin = stack.endpoint()["admin_url"]
        waiting = background.submit(client.post, "/generate", json=LONG)
        victim = busy_worker(admin)
        before = stack.units()
        os.kill(before[victim], signal.SIGKILL)
        answer = waiting.result(timeout=120)
    assert answer.status_code == 200, answer.text
    assert picture(base64.b64decode(answer.json()["image"])).size == (1024, 1024)
    assert "stopped" in stack.ok("status")

    stack.ok("deploy")

    assert changed(before, stack.units()) == [victim]
    assert "stopped" not in stack.ok("status")


def changed(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """The units of before whose process is another now."""
    return [name for name in before if after[name] != before[name]]


def test_deploy_begins_a_killed_edge_anew_and_nothing_else(stack: UserStack) -> None:
    before = stack.units()
    os.kill(before["edge"], signal.SIGKILL)
    stack.ok("deploy")
    assert changed(before, stack.units()) == ["edge"]
    with stack.client() as client:
        assert client.post("/generate", json=QUICK).status_code == 200


def test_a_deploy_whose_reader_goes_away_goes_on_to_its_end(stack: UserStack) -> None:
    before = stack.units()
    os.kill(before["batch-1"], signal.SIGKILL)
    piped = f"{shlex.join(stack.command('deploy'))} | head -n 1"
    subprocess.run(["bash", "-c", piped], cwd=REPOSITORY, env=stack.environment, check=True, timeout=120)
    assert changed(before, stack.units()) == ["batch-1"]
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
        before = stack.units()
        os.kill(before["router"], signal.SIGKILL)
        stack.ok("deploy")
        assert changed(before, stack.units()) == ["router"]
        for job in jobs:
            view = eventually(lambda job=job: ended(client, job), 120, f"{job} did not end")  # type: ignore[misc]
            assert view["state"] == "succeeded"
    with closing(stack.database()) as database:
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


def test_a_second_stack_whose_deploy_was_killed_is_taken_up_by_the_next_one_and_runs_beside_the_first(
    stack: UserStack, tmp_path: Path
) -> None:
    other = UserStack(tmp_path)
    try:
        killed = subprocess.Popen(
            other.command("deploy"),
            cwd=REPOSITORY,
            env=other.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        begun = eventually(lambda: len(found := other.units()) == 5 and found, 60, "not everything was begun")
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()

        assert "is up" in other.ok("deploy")

        assert other.units() == begun
        for one in (stack, other):
            with one.client() as client:
                assert client.post("/generate", json=QUICK).status_code == 200
        with other.client() as client:
            key = stack.endpoint()["api_key"]
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    finally:
        other.ok("destroy")
    assert other.processes() == []
    with stack.client() as client:
        assert client.get("/healthz").status_code == 200


def test_destroy_leaves_no_process_no_port_and_an_empty_state(stack: UserStack) -> None:
    stack.ok("destroy")
    assert stack.processes() == []
    assert [port for port in stack.ports if listening(port)] == []
    assert list((stack.root / "pulumi" / ".pulumi" / "stacks").rglob("*.json")) == []
    assert "nothing" in stack.ok("destroy").lower()
