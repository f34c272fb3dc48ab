"""One machine for all tests of a module, with a user whom sudo asks for a password, and its connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.bootstrap.machine import Machine
from infra.ssh.connect import connect
from infra.ssh.connection import Connection
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.ssh.pins import Pins
from infra.ssh.target import Patience
from tests.hosts import TestMachine, machine
from tests.integration.infra.bootstrap.on_a_machine import PASSWORD, described, target_of, unheard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def vm(folder: Path) -> Iterator[TestMachine]:
    """One machine for all of these tests, with a user whom sudo asks for a password."""
    key = ensure_key(folder, LOGIN)
    with machine(public_line(key, "operator"), user="ubuntu", password=PASSWORD) as running:
        yield running


@pytest.fixture
async def connection(vm: TestMachine, folder: Path) -> AsyncIterator[Connection]:
    vm.told(gpus=[["NVIDIA H100 80GB HBM3", 81559]], registry="", registry_password="", image="")
    made = await connect(target_of(vm, folder), Pins(folder / "known_hosts"), unheard, Patience(10))
    yield made
    made.close()


@pytest.fixture
def on(connection: Connection, folder: Path) -> Callable[..., Machine]:
    """The machine as steps see it; settings change what is described."""

    def changed(**settings: object) -> Machine:
        return replace(described(connection, folder), **settings)  # type: ignore[arg-type]  # named by Machine's own fields

    return changed
