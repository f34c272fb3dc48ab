"""A stack of machines that an emulated Spheron rents out, from `make deploy` to an empty account."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.emulate.account import Account
from infra.emulate.hosts.rented import Hosts
from infra.emulate.server import serving
from infra.emulate.spheron import KEY, SpheronApi, published
from tests.e2e.stack import UserStack
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.soak]

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


def test_rented_machines_make_images_and_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = [replace(each, minimum_minutes=0) for each in published()]
    with serving(SpheronApi(Account(Hosts(), boot_s=1.0), stock)) as emulator:
        monkeypatch.setenv("SPHERON_API_URL", emulator.url)
        monkeypatch.setenv("SPHERON_API_KEY", KEY)
        stack = UserStack(tmp_path)
        edge, admin, first, second = stack.ports[:4]
        stack.file.write_text(STACK.format(name=stack.name, edge=edge, admin=admin, first=first, second=second))
        try:
            stack.ok("deploy", "YES=1")
            assert len(emulator.account.alive()) == 2
            with stack.client() as client:
                for pool in ("interactive", "batch"):
                    asked = {"prompt": "a press", "width": 256, "height": 256, "steps": 1, "pool": pool}
                    job = client.post("/v1/jobs", json=asked).raise_for_status().json()
                    made = eventually(partial(_ended, client, job["id"]), 120, f"{pool} does not end its job")
                    assert made["state"] == "succeeded"
                    assert made["image"]["sha256"]
        finally:
            stack.ok("destroy")
        assert emulator.account.alive() == []


def _ended(client: httpx.Client, job: str) -> dict[str, Any] | None:
    view: dict[str, Any] = client.get(f"/v1/jobs/{job}").raise_for_status().json()
    return None if view["state"] in ("queued", "running") else view
