"""A stack of machines that an emulated Spheron rents out, from `make deploy` to an empty account."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from infra.emulate.account import Account
from infra.emulate.server import serving
from infra.emulate.spheron import KEY, SpheronApi, published
from tests.e2e.stack import UserStack
from tests.hosts.rented import TestHosts

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
    with serving(SpheronApi(Account(TestHosts(), boot_s=1.0), stock)) as emulator:
        monkeypatch.setenv("SPHERON_API_URL", emulator.url)
        monkeypatch.setenv("SPHERON_API_KEY", KEY)
        stack = UserStack(tmp_path)
        edge, admin, first, second = stack.ports[:4]
        stack.file.write_text(STACK.format(name=stack.name, edge=edge, admin=admin, first=first, second=second))
        try:
            deployed = stack.make("deploy", "YES=1")
            print(deployed.stdout, deployed.stderr)
            assert deployed.returncode == 0
            assert len(emulator.account.alive()) == 2
            assert os.environ["SPHERON_API_URL"]
        finally:
            print(stack.make("destroy").stdout)
        assert emulator.account.alive() == []
