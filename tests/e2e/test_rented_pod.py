"""A stack of pods that an emulated RunPod rents out, each the worker's image as `host`: from order to empty account."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from infra.clouds.runpod import API_KEY, API_URL
from infra.emulate.account import Account
from infra.emulate.hosts.rented import Hosts, why_not
from infra.emulate.runpod import KEY, RunpodApi
from infra.emulate.server import serving
from tests.e2e.stack import QUICK, UserStack, picture

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.soak]

STACK = """\
name: {name}
cloud: runpod
model: tiny
pod_image: registry.example/letterpress-worker:pod
budget_per_hour: 3
router:
  edge: {{host: 127.0.0.1, port: {edge}}}
  admin: {{host: 127.0.0.1, port: {admin}}}
pools:
  interactive: {{machines: 1, gpus: [H100-PCIe], first_port: {first}, warm_sizes: [256x256]}}
"""


def test_a_pod_comes_to_serve_is_left_alone_by_a_second_deploy_and_is_given_back(tmp_path: Path) -> None:
    if trouble := why_not():
        pytest.skip(trouble)
    account = Account(Hosts(are_pods=True), boot_s=1.0)
    with serving(RunpodApi(account)) as emulator:
        stack = UserStack(tmp_path)
        stack.environment |= {API_URL: emulator.url, API_KEY: KEY}
        edge, admin, first, _, _ = stack.ports
        stack.file.write_text(STACK.format(name=stack.name, edge=edge, admin=admin, first=first))
        try:
            said = stack.ok("deploy", "YES=1", timeout=600)
            assert "Together $2.39 an hour, of which $2.39 are new." in said
            with stack.client() as client:
                answer = client.post("/generate", json=QUICK).raise_for_status().json()
                assert picture(base64.b64decode(answer["image"])).size == (256, 256)
            assert "Nothing to change" in stack.ok("deploy", "YES=1")
            assert emulator.asked.count("createPod") == 1
            assert "interactive-1" in stack.ok("status")
        finally:
            stack.ok("destroy")
        assert account.alive() == []
        assert stack.processes() == []
        assert "updateSshKeys" not in emulator.asked, "the account's list of keys is never touched"
