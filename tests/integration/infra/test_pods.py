"""A pod, which is the worker's image run as `host`: its real entry point and sshd, and what a deploy does in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from infra.bootstrap.access import TunnelKey
from infra.bootstrap.machine import Machine, WantedImage, WantedWeights
from infra.bootstrap.order import WORKER_STEPS
from infra.bootstrap.step import StepError, go_through
from infra.clouds import HostKind
from infra.hosts import Unit, UnitState
from infra.hosts.container import ContainerHost
from infra.hosts.remote import stack_folder
from infra.ssh.connect import connect
from infra.ssh.connection import Connection
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.ssh.pins import Pins
from infra.ssh.target import Patience, Target
from tests.emulators.hub import LARGE, TOKEN_ACCEPTED, TOKEN_OTHER, Hub, Repository, hub
from tests.hosts import TestMachine, machine
from tests.hosts.search import holds, places
from tests.integration.infra.bootstrap.on_a_machine import described, over, unheard

STACK = "podpodpo"
ROOT = stack_folder(STACK)
NAME = "acme/gated"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def pod(folder: Path) -> Iterator[TestMachine]:
    with machine(public_line(ensure_key(folder, LOGIN), "operator"), is_pod=True) as running:
        yield running


@pytest.fixture(scope="module")
def weights_hub(pod: TestMachine, folder: Path) -> Iterator[Hub]:
    """Where the pod can reach it: at this end of its cable."""
    files = {
        "model_index.json": json.dumps({"_class_name": "Ideogram4Pipeline", "vae": ["diffusers", "V"]}).encode(),
        "vae/diffusion_pytorch_model.safetensors": bytes(LARGE),
    }
    for name, data in files.items():
        path = folder / "on-the-hub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with hub({NAME: Repository(folder / "on-the-hub")}, pod.network.here) as running:
        yield running


@asynccontextmanager
async def connected(pod: TestMachine, folder: Path) -> AsyncIterator[Connection]:
    target = Target("lp-podpodpo-p1-g1", pod.address, pod.port, "root", folder / LOGIN)
    made = await connect(target, Pins(folder / "known_hosts"), unheard, Patience(10))
    try:
        yield made
    finally:
        made.close()


def pod_machine(connection: Connection, folder: Path, weights: WantedWeights) -> Machine:
    made = described(connection, folder, STACK)
    return replace(made, kind=HostKind.CONTAINER, image=WantedImage(""), weights=weights)


async def test_weights_are_fetched_by_the_image_to_where_its_workers_look_and_the_token_stays_nowhere(
    pod: TestMachine, folder: Path, weights_hub: Hub
) -> None:
    async with connected(pod, folder) as connection:
        refused = WantedWeights(NAME, True, TOKEN_OTHER, weights_hub.url)
        with pytest.raises(StepError, match="the account that HF_TOKEN belongs to may not download it"):
            await go_through(WORKER_STEPS, pod_machine(connection, folder, refused))
        given = pod_machine(connection, folder, WantedWeights(NAME, True, TOKEN_ACCEPTED, weights_hub.url))
        assert await go_through(WORKER_STEPS, given) == ("weights",), "it goes on from there"
        assert await go_through(WORKER_STEPS, given) == ()
        found = await connection.run(f"find {ROOT}/cache/huggingface/hub -name '*.safetensors'", "looking")
        assert found.count("diffusion_pytorch_model") == 1
        assert NAME in await connection.run(f"cat {ROOT}/cache/letterpress/licences/*", "looking")
        owners = await connection.run(
            f"find {ROOT}/cache/huggingface {ROOT}/cache/letterpress -printf '%u\\n' | sort -u", "looking"
        )
        assert owners.split() == ["letterpress"]
    tokens = (TOKEN_ACCEPTED.encode(), TOKEN_OTHER.encode())
    kept = dict(places(pod))
    assert "/root/.ssh/authorized_keys" in kept
    assert [name for name, path in kept.items() if holds(path, tokens)] == []


async def test_after_a_restart_its_units_run_again_and_the_tunnel_service_is_let_in_still(
    pod: TestMachine, folder: Path
) -> None:
    unit = Unit("keeper", ("/bin/sh", "-c", "echo up; exec sleep 600"))
    async with connected(pod, folder) as connection:
        await go_through((TunnelKey(),), pod_machine(connection, folder, WantedWeights()))
        keys = pod.file("/root/.ssh/authorized_keys").read_text()
        before = await ContainerHost("pod", STACK, over(connection)).ensure(unit, unheard)
    pod.restart()
    async with connected(pod, folder) as connection, asyncio.timeout(30):
        host = ContainerHost("pod", STACK, over(connection))
        while (await host.observe("keeper")).state is not UnitState.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        assert (await host.observe("keeper")).since != before.since
        assert pod.file("/root/.ssh/authorized_keys").read_text() == keys
        assert keys.count("letterpress-tunnel-") == 1
        await host.remove("keeper", unheard)
