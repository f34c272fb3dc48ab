"""A stack of machines that an emulated Spheron rents out, from `make deploy` to an empty account."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.emulate.account import Account
from infra.emulate.hosts.rented import Hosts, why_not
from infra.emulate.server import Emulator, serving
from infra.emulate.spheron import KEY, SpheronApi, published
from tests.e2e.stack import QUICK, REPOSITORY, UserStack, picture
from tests.hosts.rented import PacedHosts, rented_stack
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine]

LINES = 60
STACK = """\
name: {name}
cloud: spheron
model: tiny
budget_per_hour: 6
router:
  edge: {{host: 127.0.0.1, port: {edge}}}
  admin: {{host: 127.0.0.1, port: {admin}}}
pools:
  interactive: {{machines: 1, gpus: [H100-PCIe], first_port: {first}, warm_sizes: [256x256]}}
  batch: {{machines: 1, market: spot, gpus: [A100-SXM-80GB], first_port: {second}, warm_sizes: [256x256]}}
"""


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    if trouble := why_not():
        pytest.skip(trouble)
    stock = [replace(each, minimum_minutes=0) for each in published()]
    with serving(SpheronApi(Account(Hosts(), boot_s=1.0), stock)) as emulator:
        monkeypatch.setenv("SPHERON_API_URL", emulator.url)
        monkeypatch.setenv("SPHERON_API_KEY", KEY)
        yield emulator


@pytest.fixture
def stack(emulator: Emulator, tmp_path: Path) -> Iterator[UserStack]:
    """Described, and destroyed at the end whatever happened; then its account is empty."""
    stack = UserStack(tmp_path)
    edge, admin, first, second = stack.ports[:4]
    stack.file.write_text(STACK.format(name=stack.name, edge=edge, admin=admin, first=first, second=second))
    yield stack
    stack.ok("destroy")
    assert emulator.account.alive() == []
    assert stack.processes() == []


def test_one_rented_machine_serves_is_what_is_paid_for_and_is_given_back(tmp_path: Path) -> None:
    """The long one below in short: one pool, one machine, a worker without torch, and no loss."""
    if trouble := why_not():
        pytest.skip(trouble)
    with rented_stack(tmp_path, Account(PacedHosts(), boot_s=1.0)) as stack:
        stack.describe(interactive=1, batch=0)
        said = stack.ok("deploy", "YES=1")
        assert "Together $2.01 an hour, of which $2.01 are new." in said
        with stack.client() as client:
            answer = client.post("/generate", json=QUICK).raise_for_status().json()
            assert picture(base64.b64decode(answer["image"])).size == (256, 256)
        (rental,) = stack.emulator.account.rentals.values()
        assert re.fullmatch(r"lp-\w{8}-interactive-1-g1", rental.name)
        assert "is gone" in stack.ok("destroy")
        assert stack.emulator.account.alive() == []
        assert stack.processes() == []


@pytest.mark.soak
def test_images_of_both_pools_and_a_batch_that_outlives_its_spot_machine(emulator: Emulator, stack: UserStack) -> None:
    stack.ok("deploy", "YES=1")
    assert len(emulator.account.alive()) == 2
    with stack.client() as client:
        asked = {"prompt": "a press", "width": 256, "height": 256, "steps": 1, "pool": "interactive"}
        job = client.post("/v1/jobs", json=asked).raise_for_status().json()
        made = eventually(partial(_ended, client, job["id"]), 120, "the interactive pool does not end its job")
        assert made["state"] == "succeeded"

    out = stack.folder / "out"
    with watching(stack), batch(stack, out) as running:
        eventually(lambda: len(made_in(out)) >= 3, 240, "the batch begins", every_s=0.2)
        (lost,) = emulator.account.take_back("batch")
        assert len(made_in(out)) < LINES, "it was lost during the batch"
        assert running.wait(420) == 0, (out.parent / "batch.out").read_text()
    assert sorted(made_in(out)) == list(range(1, LINES + 1))
    assert len(list(out.glob("*.png"))) == LINES

    deeds = [line for line in watch_log(stack) if line["deed"] == "replace"]
    assert [line["machine"] for line in deeds] == ["batch-1"]
    replacement = [rental.name for rental in emulator.account.alive() if "-batch-" in rental.name]
    assert len(replacement) == 1
    assert lost not in replacement
    pools = {pool["name"]: pool for pool in admin_view(stack, "pools")}
    assert (pools["batch"]["succeeded"], pools["batch"]["failed"]) == (LINES, 0), (
        "each once, and none of them elsewhere"
    )
    assert pools["interactive"]["succeeded"] == 2, "a deploy's own, and ours"
    assert len(emulator.account.rentals) == 3, "nothing was rented twice"


@contextmanager
def watching(stack: UserStack) -> Iterator[None]:
    """`make watch` in another terminal, until Ctrl-C."""
    with (stack.folder / "watch.out").open("wb") as out:
        watch = subprocess.Popen(
            stack.command("watch"), cwd=REPOSITORY, env=stack.environment, stdin=subprocess.DEVNULL,
            stdout=out, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        try:
            yield
            assert watch.poll() is None, (stack.folder / "watch.out").read_text()
        finally:
            os.killpg(watch.pid, signal.SIGINT)
            watch.wait(60)


@contextmanager
def batch(stack: UserStack, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    prompts = stack.folder / "prompts.txt"
    prompts.write_text("".join(f"a press, seen from {degree} degrees\n" for degree in range(LINES)))
    words = stack.words("batch", str(prompts), str(out), "--size", "256x256", "--steps", "6", "--concurrency", "4")
    with (stack.folder / "batch.out").open("wb") as said:
        running = subprocess.Popen(
            words, env=stack.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            yield running
        finally:
            running.kill()
            running.wait(30)


def made_in(out: Path) -> list[int]:
    """The lines that have their image, each as often as the index says so."""
    if not (out / "index.jsonl").exists():
        return []
    entries = [
        json.loads(line) for line in (out / "index.jsonl").read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]
    return [entry["line"] for entry in entries if entry.get("state") == "succeeded"]


def watch_log(stack: UserStack) -> list[dict[str, str]]:
    return [json.loads(line) for line in (stack.root / "logs/watch.log").read_text().splitlines()]


def admin_view(stack: UserStack, what: str) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = (
        httpx.get(f"http://127.0.0.1:{stack.ports[1]}/{what}", trust_env=False).raise_for_status().json()
    )
    return seen


def _ended(client: httpx.Client, job: str) -> dict[str, Any] | None:
    view: dict[str, Any] = client.get(f"/v1/jobs/{job}").raise_for_status().json()
    return None if view["state"] in ("queued", "running") else view
