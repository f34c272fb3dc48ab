"""What workers and the router are told when they are started, and how their readiness is awaited."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath

import pytest

from infra.edge.config import EdgeSettings
from infra.hosts import Progress, Unit, UnitState, UnitStatus
from infra.hosts.logs import Position
from infra.paths import StackPaths
from infra.provider.readiness import Answer, Verdict, pause_s, until_ready
from infra.provider.registration import RegistrationResource, RegistrationState, registered
from infra.provider.resource import Condition, ProviderError, UnitSeen, worst
from infra.provider.router_here import Here
from infra.provider.router_host import RouterHostResource
from infra.provider.router_inputs import RouterHostInputs, reachable_url
from infra.provider.site import Site
from infra.provider.worker_host import WorkerHostInputs, WorkerInputs, worker_unit
from infra.stack import CloudName
from infra.stack.description import DescriptionError
from router.contract import WorkerHealth, WorkerView
from tests.ports import free_ports
from worker.contract import Tier

WORKER = WorkerInputs(name="a-1", device="cuda:1", port=9100, token="f00d", setting="pools.a.first_port")
HOST = WorkerHostInputs(
    machine="lp-abcdefgh-a-1-g1",
    cloud=CloudName.LOCAL,
    program=("python", "-m", "worker"),
    code="c0de",
    model="${WEIGHTS}/nf4",
    engine="fast",
    tier=Tier.FP8,
    warm_sizes=("1024x1024", "512x512"),
    workers=(WORKER,),
    ready_within_s=60,
)
ENVIRON = {"WEIGHTS": "/disk"}


def unit(host: WorkerHostInputs = HOST, worker: WorkerInputs = WORKER) -> Unit:
    return worker_unit(host, worker, PurePath("/machine"), ENVIRON)


def test_a_worker_is_told_its_weights_its_device_and_where_its_token_is() -> None:
    assert unit().env == {
        "LETTERPRESS_WORKER_MODEL": "/disk/nf4",
        "LETTERPRESS_WORKER_ENGINE": "fast",
        "LETTERPRESS_WORKER_TIER": "fp8",
        "LETTERPRESS_WORKER_WARM_SIZES": "1024x1024,512x512",
        "LETTERPRESS_WORKER_DEVICE": "cuda:1",
        "LETTERPRESS_WORKER_HOST": "127.0.0.1",
        "LETTERPRESS_WORKER_PORT": "9100",
        "LETTERPRESS_WORKER_TOKEN_FILE": "/machine/secrets/worker-token-a-1",
    }


def test_its_port_is_claimed_with_the_setting_that_changes_it() -> None:
    (address,) = unit().listens
    assert (str(address), address.setting) == ("127.0.0.1:9100", "pools.a.first_port")


def test_weights_that_refer_to_nothing_are_reported_by_the_variables_name() -> None:
    with pytest.raises(DescriptionError, match="WEIGHTS is not set"):
        worker_unit(HOST, WORKER, PurePath("/machine"), {})


def test_tiny_workers_share_the_cores_of_one_computer() -> None:
    tiny = HOST.model_copy(update={"model": "tiny"})
    on_cpu = WORKER.model_copy(update={"device": "cpu"})
    assert unit(tiny, on_cpu).env["LETTERPRESS_WORKER_CPU_THREADS"] == "1"
    assert "LETTERPRESS_WORKER_CPU_THREADS" not in unit(tiny, WORKER).env


@pytest.mark.parametrize(
    ("host", "worker"),
    [(HOST, {"token": "beef"}), (HOST.model_copy(update={"code": "new"}), {})],
    ids=["token", "code"],
)
def test_a_new_token_or_new_code_makes_the_same_command_another_unit(
    host: WorkerHostInputs, worker: dict[str, str]
) -> None:
    changed = unit(host, WORKER.model_copy(update=worker))
    assert changed.fingerprint == unit().fingerprint
    assert changed.config != unit().config


ROUTER = RouterHostInputs(
    program=("python", "-m", "router"),
    code="c0de",
    edge_host="0.0.0.0",  # noqa: S104
    edge_port=9000,
    admin_host="127.0.0.1",
    admin_port=9001,
    keys={"api-key": "f00d"},
)


@pytest.fixture
def open_home() -> Iterator[Path]:
    """Not pytest's tmp_path, above which are folders that bar everyone else."""
    with tempfile.TemporaryDirectory(prefix="lp-") as home:
        Path(home).chmod(0o711)
        yield Path(home)


def router_unit(resource: RouterHostResource, inputs: RouterHostInputs) -> Unit:
    (only,) = resource.units_of_routers(inputs)
    return only


def edge_settings(resource: RouterHostResource, inputs: RouterHostInputs) -> EdgeSettings:
    front = resource.front(inputs)
    assert isinstance(front, Here)
    return front.settings


def test_the_edge_sends_a_folders_images_and_has_none_of_a_bucket(open_home: Path) -> None:
    resource = RouterHostResource(Site(StackPaths.of("s", open_home), {}))
    assert router_unit(resource, ROUTER).env["LETTERPRESS_ROUTER_EDGE_SENDS_ARTIFACTS"] == "true"
    artifacts = edge_settings(resource, ROUTER).artifacts
    assert artifacts
    assert artifacts.path == open_home / "s" / "router" / "data" / "artifacts"
    bucket = ROUTER.model_copy(
        update={"settings": {"S3_BUCKET": "images"}, "keys": {"api-key": "f00d", "s3-credentials": "beef"}}
    )
    env = router_unit(resource, bucket).env
    assert "LETTERPRESS_ROUTER_EDGE_SENDS_ARTIFACTS" not in env
    assert env["LETTERPRESS_ROUTER_S3_BUCKET"] == "images"
    assert env["LETTERPRESS_ROUTER_S3_CREDENTIALS_FILE"] == str(open_home / "s" / "secrets" / "s3-credentials")
    assert edge_settings(resource, bucket).artifacts is None
    assert router_unit(resource, bucket).config != router_unit(resource, ROUTER).config


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's edge runs as another user")
def test_images_below_a_home_that_bars_the_edge_are_sent_by_the_router(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    resource = RouterHostResource(Site(StackPaths.of("s", tmp_path), {}))
    assert "LETTERPRESS_ROUTER_EDGE_SENDS_ARTIFACTS" not in router_unit(resource, ROUTER).env
    assert edge_settings(resource, ROUTER).artifacts is None


def test_the_router_is_told_of_its_secrets_by_their_files(tmp_path: Path) -> None:
    site = Site(StackPaths.of("s", tmp_path), {})
    router = router_unit(RouterHostResource(site), ROUTER)
    assert router.env["LETTERPRESS_ROUTER_API_KEY_FILE"] == str(tmp_path / "s" / "secrets" / "api-key")
    assert router.env["LETTERPRESS_ROUTER_PUBLIC_URL"] == "http://127.0.0.1:9000"
    assert not site.paths.root.exists(), "describing a unit makes nothing"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_a_server_that_listens_everywhere_is_reached_on_loopback(host: str, url: str) -> None:
    assert reachable_url(host, 80) == url


def test_a_whole_is_as_bad_as_its_first_bad_part() -> None:
    assert worst([Condition.RUNNING, Condition.ORPHANED, Condition.STOPPED]) is Condition.ORPHANED
    assert worst([Condition.RUNNING]) is Condition.RUNNING


@pytest.mark.parametrize("state", UnitState)
def test_every_state_of_a_unit_is_a_condition(state: UnitState) -> None:
    assert UnitSeen.of("a", UnitStatus(state, fingerprint="x"), "x").condition.value == state.value


def test_a_unit_that_runs_otherwise_than_described_is_different() -> None:
    seen = UnitSeen.of("a", UnitStatus(UnitState.RUNNING, 7, fingerprint="old"), "new")
    assert seen.condition is Condition.DIFFERENT


@dataclass
class ScriptedHost:
    """A host at the `Host` seam with one unit, which a test has run or stopped."""

    state: UnitState = UnitState.RUNNING

    @property
    def name(self) -> str:
        return "somewhere"

    @property
    def root(self) -> PurePath:
        return PurePath("/")

    async def observe(self, _unit: str) -> UnitStatus:
        return UnitStatus(self.state)

    async def tail(self, _unit: str, lines: int) -> str:
        return f"the last {lines} lines"

    async def log_end(self, _unit: str) -> Position:
        return Position()

    async def written_since(self, _unit: str, seen: Position) -> tuple[str, Position]:
        return "", seen

    async def ensure(self, unit: Unit, progress: Progress) -> UnitStatus:
        raise NotImplementedError

    async def remove(self, unit: str, progress: Progress) -> None:
        raise NotImplementedError

    async def write(self, path: PurePath, content: bytes, mode: int = 0o600) -> None:
        raise NotImplementedError

    async def read(self, path: PurePath) -> bytes | None:
        raise NotImplementedError

    async def get(self, port: int, path: str) -> tuple[int, bytes] | None:
        raise NotImplementedError

    async def units(self) -> Mapping[str, UnitStatus]:
        raise NotImplementedError


async def awaited(*answers: Answer, state: UnitState = UnitState.RUNNING, within_s: float = 30) -> list[str]:
    """Await a unit that gives these answers, the last one for ever; the stages that were told."""
    left = list(answers)
    told: list[str] = []

    async def ask() -> Answer:
        return left.pop(0) if len(left) > 1 else left[0]

    await until_ready(ScriptedHost(state), "a-1", ask, within_s, told.append)
    return told


def test_what_takes_longer_is_looked_at_more_rarely() -> None:
    assert [pause_s(waited) for waited in (0, 3, 10, 30, 3600)] == [0.3, 0.3, 1.0, 3.0, 3.0]


async def test_its_own_reasons_are_told_until_it_is_ready() -> None:
    told = await awaited(Answer(Verdict.WAIT, "loading"), Answer(Verdict.WAIT, "warming up"), Answer(Verdict.READY))
    assert told == ["loading", "warming up"]


async def test_one_that_takes_too_long_is_named_with_what_it_said_last_and_what_to_do() -> None:
    begun = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        await awaited(Answer(Verdict.WAIT, "downloading"), within_s=0.5)
    assert time.monotonic() - begun < 10
    assert str(caught.value) == (
        "a-1 on somewhere is not ready after 0.5 s; it says: downloading. Its log ends with:\nthe last 15 lines\n"
        "It goes on by itself: watch it with `make logs`, and run `make deploy` again to go on waiting."
    )


@pytest.mark.parametrize("state", [UnitState.STOPPED, UnitState.ORPHANED])
async def test_one_whose_process_ends_is_not_waited_for(state: UnitState) -> None:
    with pytest.raises(ProviderError, match="a-1 on somewhere ended before it was ready"):
        await awaited(Answer(Verdict.WAIT, "does not answer yet"), state=state)


async def test_one_that_calls_itself_broken_is_believed() -> None:
    with pytest.raises(ProviderError, match="is broken: the GPU fell off the bus"):
        await awaited(Answer(Verdict.BROKEN, "the GPU fell off the bus"))


async def test_a_router_that_is_away_does_not_keep_a_worker_from_being_removed(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    state = RegistrationState(
        worker="a-1", pool="a", url="http://127.0.0.1:1", token="f", admin_url=f"http://127.0.0.1:{port}"
    )
    told: list[str] = []
    registration = RegistrationResource(Site(StackPaths.of("s", tmp_path), {}))
    await registration.delete(state, told.append)
    assert "which is away" in told[-1]
    seen = await registration.read(state)
    assert seen is not None
    assert seen.condition is Condition.UNKNOWN


@pytest.mark.parametrize(("draining", "condition"), [(True, Condition.DIFFERENT), (False, Condition.REGISTERED)])
def test_a_worker_that_an_upgrade_left_draining_is_registered_anew(draining: bool, condition: Condition) -> None:
    state = RegistrationState(worker="a-1", pool="a", url="http://127.0.0.1:1", token="f", admin_url="http://x")
    view = WorkerView(
        name="a-1",
        url=state.url,
        pool="a",
        token_fingerprint="f",
        health=WorkerHealth.READY,
        draining=draining,
        since=datetime.now(UTC),
        running=0,
        finished=0,
    )
    assert registered(state, view, state.url).condition is condition


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "started by the Pulumi engine, not by hand"), (("127.0.0.1:1",), "LETTERPRESS_STACK is not set")],
)
def test_the_provider_started_by_hand_says_that_it_is_not_meant_to_be(arguments: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-c", "import sys; from infra.provider.server import main; sys.exit(main())", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert said in done.stderr
