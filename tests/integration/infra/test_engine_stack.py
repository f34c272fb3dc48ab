"""A stack through the real Pulumi engine: it comes up, stays, is repaired where it broke, and goes."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.engine import EngineError, OnFailure, OperationFailedError
from infra.engine.events import Action, Stage
from infra.engine.guard import orphans
from infra.secrets import SecretStore
from tests.integration.infra.engine_rig import READY, Rig, done, new_rig
from tests.ports import free_ports

pytestmark = pytest.mark.engine

UNITS = ("router", "edge", "interactive-1", "batch-1")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with new_rig(tmp_path) as rig:
        yield rig


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A stack that is up, shared by tests that leave it as they found it."""
    with new_rig(tmp_path_factory.mktemp("deployed")) as rig:
        rig.up()
        yield rig


def test_a_stack_comes_up_whole_and_goes_without_a_trace(rig: Rig) -> None:
    planned = done(rig.preview())
    assert not rig.machines(), "a preview makes nothing"
    made = rig.up()
    assert done(made) == planned == dict.fromkeys(planned, Action.CREATE)
    assert set(rig.pids()) == set(UNITS)
    edge = rig.ports()[0]
    assert httpx.get(f"http://127.0.0.1:{edge}/healthz", trust_env=False).status_code == 200

    assert set(done(rig.destroy())) == set(planned)
    assert rig.left_over() == []


def test_a_preview_of_what_is_as_described_finds_nothing_to_do(deployed: Rig) -> None:
    assert not deployed.preview().changes


def test_a_second_deploy_changes_nothing_and_leaves_every_process_alone(deployed: Rig) -> None:
    before = deployed.pids()
    assert not deployed.up().changes
    assert deployed.pids() == before


def test_no_provider_stays_when_an_operation_has_ended(deployed: Rig) -> None:
    assert orphans(deployed.paths.root) == ()


@pytest.mark.parametrize(
    ("unit", "repaired"),
    [
        ("interactive-1", {"interactive-1-workers"}),
        # Without a router nobody can tell whether it knows its workers, so they are told to it once more.
        ("router", {"router", "interactive-1-registration", "batch-1-registration"}),
        ("edge", {"router"}),
    ],
)
def test_a_killed_unit_is_repaired_and_no_other_process_is_touched(
    deployed: Rig, unit: str, repaired: set[str]
) -> None:
    before = deployed.pids()
    deployed.kill(unit)
    assert done(deployed.up()) == dict.fromkeys(repaired, Action.REPAIR)
    after = deployed.pids()
    assert after[unit] not in (None, before[unit])
    assert {name: pid for name, pid in after.items() if name != unit} == {
        name: pid for name, pid in before.items() if name != unit
    }


def test_a_registration_that_the_router_has_forgotten_is_made_again(deployed: Rig) -> None:
    admin = f"http://127.0.0.1:{deployed.ports()[1]}"
    httpx.delete(f"{admin}/workers/batch-1", trust_env=False).raise_for_status()
    assert done(deployed.up()) == {"batch-1-registration": Action.CREATE}
    assert httpx.get(f"{admin}/workers/batch-1", trust_env=False).json()["pool"] == "batch"


def test_the_state_holds_the_resources_and_how_they_are(deployed: Rig) -> None:
    with deployed.engine() as engine:
        state = engine.state()
    assert {each.name for each in state.resources if each.condition.good} == {
        "router",
        *(f"{pool}-1{what}" for pool in ("interactive", "batch") for what in ("", "-workers", "-registration")),
    }


def test_no_secret_is_in_the_state_or_anywhere_else_but_in_its_own_file(deployed: Rig) -> None:
    store = SecretStore(deployed.paths.secrets)
    names = [file.name for file in store.folder.iterdir()]
    assert {"passphrase", "api-key", "admin-key", "signing-key", "worker-token-batch-1"} <= set(names)
    values = {store.read(name).encode(): name for name in names}
    # The router's own store is its business: here it is the stand-in's.
    kept = (deployed.paths.secrets, deployed.paths.router / "data")
    for file in deployed.paths.root.rglob("*"):
        if file.is_file() and not any(folder in file.parents for folder in kept) and file.parent.name != "secrets":
            content = file.read_bytes()
            assert not [name for value, name in values.items() if value in content], file
    state = next(deployed.paths.pulumi.glob("**/stacks/**/rig.json")).read_text()
    assert store.fingerprint("api-key") in state


def test_no_secret_is_in_any_process_list_or_environment(deployed: Rig) -> None:
    store = SecretStore(deployed.paths.secrets)
    values = {file.name: store.read(file.name).encode() for file in store.folder.iterdir()}
    ours, seen = {pid for pid in deployed.pids().values() if pid}, set[int]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:  # ended meanwhile, or somebody else's
            continue
        seen.add(int(process.name))
        assert not [name for name, value in values.items() if value in shown], process
    assert ours <= seen


def test_nobody_else_may_read_a_key(deployed: Rig) -> None:
    assert deployed.paths.root.stat().st_mode & 0o006 == 0
    assert deployed.paths.secrets.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in deployed.paths.secrets.iterdir()} == {0o600}


def test_a_new_port_moves_one_worker_and_tells_the_router(rig: Rig) -> None:
    rig.up()
    before = rig.pids()
    *_, old = rig.ports()
    (new,) = free_ports(1)
    rig.describe(f"first_port: {old}", f"first_port: {new}")
    assert done(rig.up()) == {"batch-1-workers": Action.UPDATE, "batch-1-registration": Action.UPDATE}
    after = rig.pids()
    assert [name for name in before if after[name] != before[name]] == ["batch-1"]
    view = httpx.get(f"http://127.0.0.1:{rig.ports()[1]}/workers/batch-1", trust_env=False).json()
    assert view["url"] == f"http://127.0.0.1:{new}"


def test_another_market_is_another_machine_and_the_first_one_is_given_back(rig: Rig) -> None:
    rig.up()
    first = rig.machines()
    rig.describe("market: spot", "market: on_demand")
    assert done(rig.up()) == {"batch-1": Action.REPLACE, "batch-1-workers": Action.REPLACE}
    now = rig.machines()
    assert [name.replace("batch-1-g1", "batch-1-g2") for name in first] == now
    assert not rig.up().changes


def test_a_smaller_pool_gives_back_the_machine_with_everything_on_it(rig: Rig) -> None:
    rig.up()
    rig.describe("machines: 1, market: spot", "machines: 0, market: spot")
    outcome = done(rig.up())
    assert outcome == dict.fromkeys(("batch-1", "batch-1-workers", "batch-1-registration"), Action.DELETE)
    assert "batch-1" not in rig.pids()


def test_a_lost_token_is_drawn_anew_and_reaches_the_worker_and_the_router(rig: Rig) -> None:
    rig.up()
    before = rig.pids()
    SecretStore(rig.paths.secrets).path("worker-token-batch-1").unlink()
    assert done(rig.up()) == {"batch-1-workers": Action.UPDATE, "batch-1-registration": Action.UPDATE}
    after = rig.pids()
    assert [name for name in before if after[name] != before[name]] == ["batch-1"]


def test_a_lost_passphrase_is_named_and_never_drawn_anew_over_a_state(rig: Rig) -> None:
    rig.preview()
    passphrase = SecretStore(rig.paths.secrets).path("passphrase")
    kept = passphrase.rename(passphrase.with_name("kept"))
    with pytest.raises(EngineError, match=r"secrets/passphrase is gone, and .*rig\.json is sealed with it"):
        rig.preview()
    shutil.rmtree(rig.paths.pulumi)
    with pytest.raises(EngineError, match=r"Pulumi\.rig\.yaml is sealed with it.* remove .*/project,"):
        rig.preview()
    assert not passphrase.exists()
    kept.rename(passphrase)
    assert rig.preview().changes


def test_a_passphrase_that_opens_nothing_is_reported_in_the_engines_own_words(rig: Rig) -> None:
    rig.preview()
    passphrase = SecretStore(rig.paths.secrets).path("passphrase")
    right = passphrase.read_text()
    passphrase.write_text("another")
    with pytest.raises(EngineError, match=r"^stack rig: .*incorrect passphrase$"):
        rig.preview()
    passphrase.write_text(right)


def test_a_worker_that_fails_says_why_and_what_to_do_and_nothing_is_deleted(rig: Rig) -> None:
    rig.let_workers("0.5", "dies")
    with pytest.raises(OperationFailedError) as caught:
        rig.up()
    said = str(caught.value)
    assert "batch-1-workers: batch-1 on lp-" in said
    assert "ended before it was ready. Its log ends with:\nno weights: the disk is full\nMend what" in said
    assert "rpc error" not in said
    assert "urn:" not in said
    assert len(rig.machines()) == 2

    router = rig.pids()["router"]
    rig.let_workers(*READY)
    actions = done(rig.up())
    assert actions["batch-1-workers"] is Action.UPDATE
    assert actions["batch-1-registration"] is Action.CREATE
    assert rig.pids()["router"] == router


def test_a_broken_worker_is_not_waited_for(rig: Rig) -> None:
    rig.let_workers("0", "broken")
    with pytest.raises(OperationFailedError, match=r"batch-1 on .* is broken: broken: reading weights"):
        rig.up()


def test_a_port_that_a_stranger_holds_is_named_with_its_setting(rig: Rig) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", rig.ports()[3]))
        stranger.listen()
        with pytest.raises(OperationFailedError, match=r"is already in use by .*`pools\.batch\.first_port`"):
            rig.up()


@pytest.mark.parametrize("on_failure", OnFailure)
def test_what_waits_for_nothing_that_failed_is_brought_up_all_the_same_where_that_is_meant(
    rig: Rig, on_failure: OnFailure
) -> None:
    rig.let_workers("2", "ready")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", rig.ports()[3]))
        stranger.listen()
        with pytest.raises(OperationFailedError) as caught:
            rig.up(on_failure)
    assert [failure.resource for failure in caught.value.outcome.failures] == ["batch-1-workers"]
    with rig.engine() as engine:
        names = {resource.name for resource in engine.state().resources}
    assert ("interactive-1-registration" in names) is (on_failure is OnFailure.GO_ON)
    assert "batch-1-registration" not in names


def test_the_stages_of_a_worker_are_told_in_its_own_words(rig: Rig) -> None:
    rig.let_workers("1", "ready")
    rig.up()
    told = [p for p in rig.progress if p.resource == "batch-1-workers" and p.action is Action.CREATE]
    assert told[0].stage is Stage.BEGUN
    assert "loading: reading weights" in [p.text for p in told]
    assert told[-1].stage is Stage.DONE
    assert told[-1].seconds >= 1
