"""Which resources a stack consists of, and how they are handed to Pulumi."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pulumi
import pytest

from infra.clouds import Market, Offer
from infra.identity import Identity
from infra.planning.placement import Placed, Placement
from infra.planning.program import Declared, Program, Programs, declare, resources, secret_names
from infra.provider.machine import MachineInputs
from infra.provider.registration import RegistrationInputs
from infra.provider.resource import Inputs, Kind
from infra.provider.router_inputs import RouterHostInputs
from infra.provider.worker_host import WorkerHostInputs
from infra.stack import StackDescription

PROGRAMS = Programs(worker=Program(("python", "-m", "worker"), "w1"), router=Program(("python", "-m", "router"), "r1"))
CPU = Offer("cpu.on_demand", "local", Market.ON_DEMAND, "", 0, "here", 0.0)
FOUR_GPUS = Offer("x4", "elsewhere", Market.SPOT, "H100", 4, "eu", 9.0)
DESCRIPTION = StackDescription.model_validate(
    {
        "name": "s",
        "model": "tiny",
        "router": {"edge": {"host": "0.0.0.0", "port": 9000}, "admin": {"port": 9001}},  # noqa: S104
        "pools": {"a": {"machines": 2, "first_port": 9100}, "b": {"machines": 1, "first_port": 9200}},
    }
)
PLACEMENT = Placement((Placed("a-1", CPU), Placed("a-2", CPU, 3), Placed("b-1", FOUR_GPUS)))


def declared(description: StackDescription = DESCRIPTION, generation: str = "t") -> tuple[Declared, ...]:
    fingerprints = {name: f"{generation}-{name}" for name in secret_names(PLACEMENT)}
    return resources(description, PLACEMENT, Identity("abcdefgh"), fingerprints, PROGRAMS)


def inputs(name: str) -> Inputs:
    return next(resource.inputs for resource in declared() if resource.name == name)


def test_a_stack_is_a_router_host_and_for_each_machine_itself_its_workers_and_their_registrations() -> None:
    assert [(resource.kind, resource.name) for resource in declared()] == [
        (Kind.ROUTER_HOST, "router"),
        (Kind.MACHINE, "a-1"),
        (Kind.WORKER_HOST, "a-1-workers"),
        (Kind.REGISTRATION, "a-1-registration"),
        (Kind.MACHINE, "a-2"),
        (Kind.WORKER_HOST, "a-2-workers"),
        (Kind.REGISTRATION, "a-2-registration"),
        (Kind.MACHINE, "b-1"),
        (Kind.WORKER_HOST, "b-1-workers"),
        *((Kind.REGISTRATION, f"b-1-gpu{index}-registration") for index in range(4)),
    ]


def test_every_resource_comes_after_what_it_depends_on() -> None:
    seen: set[str] = set()
    for resource in declared():
        assert seen.issuperset(resource.depends_on)
        seen.add(resource.name)


def test_a_machine_is_named_with_the_stacks_id_and_its_generation() -> None:
    machine = inputs("a-2")
    assert isinstance(machine, MachineInputs)
    assert machine.name == "lp-abcdefgh-a-2-g3"


def test_workers_of_a_pool_listen_on_consecutive_ports_one_a_gpu() -> None:
    four, second = inputs("b-1-workers"), inputs("a-2-workers")
    assert isinstance(four, WorkerHostInputs)
    assert isinstance(second, WorkerHostInputs)
    assert [(worker.name, worker.device, worker.port) for worker in four.workers] == [
        (f"b-1-gpu{index}", f"cuda:{index}", 9200 + index) for index in range(4)
    ]
    assert [(worker.name, worker.device, worker.port) for worker in second.workers] == [("a-2", "cpu", 9101)]


def test_a_worker_is_registered_under_the_url_that_it_listens_on_and_the_token_that_it_asks_for() -> None:
    registration, host = inputs("a-2-registration"), inputs("a-2-workers")
    assert isinstance(registration, RegistrationInputs)
    assert isinstance(host, WorkerHostInputs)
    assert registration.url == "http://127.0.0.1:9101"
    assert registration.token == host.workers[0].token == "t-worker-token-a-2"
    assert registration.admin_url == "http://127.0.0.1:9001"
    assert registration.pool == "a"


def test_the_router_host_has_its_addresses_and_its_keys_fingerprints() -> None:
    router = inputs("router")
    assert isinstance(router, RouterHostInputs)
    assert (router.edge_host, router.edge_port, router.admin_port) == ("0.0.0.0", 9000, 9001)  # noqa: S104
    assert router.keys == {name: f"t-{name}" for name in ("api-key", "admin-key", "signing-key")}


def test_a_new_token_changes_its_worker_and_its_registration_and_nothing_else() -> None:
    changed = {a.name for a, b in zip(declared(), declared(generation="u"), strict=True) if a != b}
    everything = {resource.name for resource in declared()}
    assert everything - changed == {"a-1", "a-2", "b-1"}


def test_other_weights_change_the_workers_alone() -> None:
    other = DESCRIPTION.model_copy(update={"model": "owner/name"})
    changed = {a.name for a, b in zip(declared(), declared(other), strict=True) if a != b}
    assert changed == {"a-1-workers", "a-2-workers", "b-1-workers"}


class Monitor(pulumi.runtime.Mocks):
    """Stands where the Pulumi engine stands, and notes what is registered with it."""

    def __init__(self) -> None:
        self.registered: dict[str, tuple[str, dict[str, Any]]] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        self.registered[args.name] = (args.typ, args.inputs)
        return args.name, args.inputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise AssertionError(f"{args.token}: the program asks nobody for anything")


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitor]:
    """Pulumi's own mocks. They make an event loop in each thread that they meet and close none of them."""
    policy = asyncio.get_event_loop_policy()
    new_loop, made = policy.new_event_loop, list[asyncio.AbstractEventLoop]()

    def recorded() -> asyncio.AbstractEventLoop:
        made.append(new_loop())
        return made[-1]

    monkeypatch.setattr(policy, "new_event_loop", recorded)
    asyncio.set_event_loop(asyncio.new_event_loop())
    monitor = Monitor()
    pulumi.runtime.set_mocks(monitor, project="letterpress", stack="s", preview=False)
    yield monitor
    asyncio.set_event_loop(None)
    for loop in made:
        loop.close()


def test_what_is_declared_reaches_pulumi_as_it_was_described(monitor: Monitor) -> None:
    pulumi.runtime.test(lambda: declare(declared()))()  # type: ignore[no-untyped-call]
    assert set(monitor.registered) == {resource.name for resource in declared()}
    for resource in declared():
        kind, properties = monitor.registered[resource.name]
        assert kind == resource.kind
        assert type(resource.inputs).model_validate(properties) == resource.inputs


def test_a_declared_resource_is_a_plain_value() -> None:
    assert declared() == declared()
    with pytest.raises(dataclasses.FrozenInstanceError):
        declared()[0].name = "other"  # type: ignore[misc]
