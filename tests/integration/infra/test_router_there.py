"""A router on a machine of its own, from bare to answering over HTTPS and gone again: real sshd, nginx and router."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import pytest

from infra.bootstrap.router.packages import Packages
from infra.bootstrap.step import go_through
from infra.clouds import Access
from infra.edge.config import edge_config
from infra.edge.nginx import find_nginx
from infra.hosts import Unit, UnitState
from infra.hosts.layout import Accounts
from infra.paths import StackPaths
from infra.planning.planner import keep_certificate, programs_here
from infra.provider import router_host, router_there, tunnels
from infra.provider.place import RouterPlace
from infra.provider.resource import Condition, IncompleteError
from infra.provider.router_host import RouterHostResource
from infra.provider.router_inputs import RouterHostInputs, RouterHostState, TlsInputs
from infra.provider.router_there import There
from infra.provider.router_units import tunnel_unit
from infra.provider.site import Site
from infra.ssh.errors import CommandError
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.ssh.pins import Pins
from router.client import RouterAwayError
from router.contract import WorkerRegistration
from tests.authority import Authority
from tests.hosts import TestMachine, machine, without_python
from tests.hosts.apt import apt_get
from tests.hosts.wheels import wheels
from tests.postgres import Postgres
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed (make deploy installs it)")

NAME = "images.example.com"


def unheard(_: str) -> None:
    """Nobody follows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def vm(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestMachine]:
    """One bare machine for all of these tests, and a package index that it can reach."""
    index = wheels("router", tmp_path_factory.mktemp("index"))
    for above in (index, *index.parents[:2]):
        above.chmod(0o755)
    key = ensure_key(folder, LOGIN)
    with machine(public_line(key, "operator"), user="ubuntu", gpus=None, packages=str(index)) as running:
        yield running


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    made = Site(StackPaths.of("front", folder / "home"), {})
    made.paths.create()
    yield made
    made.connections.close()


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def described(vm: TestMachine, site: Site, folder: Path, authority: Authority) -> RouterHostInputs:
    chain, key = authority.sign(NAME)
    keep_certificate((str(chain), str(key)), NAME, site.secrets, {})
    names = ("api-key", "admin-key", "signing-key", "tls-certificate", "tls-key")
    return RouterHostInputs(
        host=Access(vm.address, vm.port, "ubuntu", str(folder / LOGIN)),
        program=(),
        code=programs_here().router.code,
        edge_host="0.0.0.0",  # noqa: S104
        edge_port=443,
        tls=TlsInputs(domain=NAME, own=True, plain_port=80),
        admin_host="127.0.0.1",
        admin_port=8081,
        keys={name: site.secrets.fingerprint(name) for name in names},
        tunnels=True,
    )


@dataclass
class Front:
    """The router's machine as the operator and as clients see it."""

    vm: TestMachine
    resource: RouterHostResource
    inputs: RouterHostInputs
    trust: ssl.SSLContext

    async def up(self, told: list[str] | None = None) -> RouterHostState:
        """Brought up unless it is: the first test pays for it."""
        return await self.resource.ensure(self.inputs, None, told.append if told is not None else unheard)

    @property
    def place(self) -> RouterPlace:
        return RouterPlace(self.resource.site, self.inputs.host)

    @property
    def accounts(self) -> Accounts:
        assert self.place.layout.accounts
        return self.place.layout.accounts

    def get(self, path: str) -> httpx.Response:
        """As a client that calls it by its name, and trusts its authority and nobody else."""
        with httpx.Client(base_url=f"https://{self.vm.address}", verify=self.trust, trust_env=False) as client:
            return client.get(path, headers={"Host": NAME}, extensions={"sni_hostname": NAME})

    def answers(self) -> bool:
        try:
            return self.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def open_ports(self) -> list[int]:
        return [port for port in (22, 80, 443, 8081, 9101) if self._reaches(port)]

    def _reaches(self, port: int) -> bool:
        try:
            socket.create_connection((self.vm.address, port), 0.5).close()
        except OSError:
            return False
        return True


@pytest.fixture
def front(vm: TestMachine, site: Site, described: RouterHostInputs, authority: Authority) -> Front:
    return Front(vm, RouterHostResource(site), described, ssl.create_default_context(cafile=str(authority.root)))


async def test_a_bare_machine_comes_to_answer_over_https_and_a_second_time_nothing_is_done(front: Front) -> None:
    first = await front.up()
    assert first.condition is Condition.RUNNING
    assert first.url == f"https://{NAME}"
    assert front.get("/healthz").status_code == 200
    assert front.get("/v1/jobs/x").status_code == 401
    begun, told = time.monotonic(), list[str]()
    again = await front.up(told)
    assert {unit.name: unit.pid for unit in again.units} == {unit.name: unit.pid for unit in first.units}
    assert not [stage for stage in told if re.search("starting|installing|making|checking|replacing", stage)]
    assert time.monotonic() - begun < 30
    seen = await front.resource.read(again)
    assert seen
    assert seen.condition is Condition.RUNNING


async def test_its_admin_app_is_reached_through_ssh_and_no_other_way(front: Front) -> None:
    await front.up()
    async with front.place.admin("http://127.0.0.1:8081") as client:
        assert (await client.health()).status == "ok"
        registration = WorkerRegistration(url="http://127.0.0.1:9", token="t" * 32, pool="interactive")
        assert (await client.register("w-1", registration)).name == "w-1"
        await client.remove("w-1")
    async with front.place.admin("http://127.0.0.1:9999") as client:
        with pytest.raises(RouterAwayError, match="nobody answers at"):
            await client.health()
    assert front.open_ports() == [22, 80, 443]


async def test_what_everybody_can_talk_to_reads_neither_keys_nor_database(front: Front) -> None:
    await front.up()
    layout, edge = front.place.layout, front.accounts.edge
    as_edge = ("setpriv", "--reuid", edge, "--regid", edge, "--init-groups")
    for file in (layout.secrets / "api-key", layout.data / "router.db"):
        assert front.vm.inside("stat", str(file))
        with pytest.raises(subprocess.CalledProcessError):
            front.vm.inside(*as_edge, "cat", str(file))
    running = front.vm.inside("ps", "-eww", "-o", "user:32,args").splitlines()
    assert {line.split()[0] for line in running if " -m router" in line} == {front.accounts.router}
    assert {line.split()[0] for line in running if "nginx:" in line} == {edge}
    everything = front.vm.inside("sh", "-c", "cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'")
    for name in ("api-key", "admin-key", "signing-key"):
        assert front.resource.site.secrets.read(name) not in everything


async def test_a_configuration_that_nginx_refuses_changes_nothing(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await front.up()
    monkeypatch.setattr(router_there, "edge_config", lambda _: "nonsense on;\n")
    with pytest.raises(IncompleteError, match='unknown directive "nonsense"'):
        await front.up()
    assert front.answers()
    monkeypatch.undo()
    after = await front.up()
    assert {unit.name: unit.pid for unit in after.units} == {unit.name: unit.pid for unit in before.units}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"host": "127.0.0.1"}, id="that nginx does not take over"),
        pytest.param({"socket": Path("/run/nowhere.sock")}, id="that does not answer", marks=pytest.mark.soak),
    ],
)
async def test_a_configuration_that_nginx_accepts_and_that_does_not_work_is_taken_back(
    front: Front, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    """As a bug of ours would be, or an address that somebody else has by now."""
    await front.up()
    right = edge_config
    monkeypatch.setattr(router_host, "READY_WITHIN_S", 2.0)
    monkeypatch.setattr(router_there, "TAKEN_OVER_TRIES", 5)
    monkeypatch.setattr(router_there, "edge_config", lambda settings: right(replace(settings, **wrong)))
    with pytest.raises(IncompleteError, match="configuration of before is in force again"):
        await front.up()
    eventually(front.answers, 30, "the edge answers as before")
    assert "listen 0.0.0.0:443" in front.vm.inside("cat", str(front.place.layout.edge / "nginx.conf"))


async def test_a_router_that_moves_there_is_ended_here(front: Front) -> None:
    state, here = await front.up(), RouterPlace(front.resource.site, None).host()
    await here.ensure(Unit("router", ("/bin/sleep", "600")), unheard)
    await front.resource.ensure(front.inputs, state.model_copy(update={"host": None}), unheard)
    assert (await here.observe("router")).state is UnitState.STOPPED


async def test_another_machine_is_not_taken_while_the_data_lies_on_the_one_of_before(front: Front) -> None:
    state, site = await front.up(), front.resource.site
    elsewhere = state.model_copy(update={"host": Access("192.0.2.99")})
    site.connections.close()
    pins = Pins(site.paths.known_hosts)
    pinned = pins.get(front.place.machine)
    assert pinned
    pins.forget(front.place.machine)
    pins.pin(front.place.machine, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB8HBy8ux5+vvJ2DqbIzvCyR3fmPC0hyFBJHd3d5ZQPd")
    with pytest.raises(IncompleteError, match=r"than 192\.0\.2\.99, where the router's database and images lie"):
        await front.resource.ensure(front.inputs, elsewhere, unheard)
    pins.forget(front.place.machine)
    pins.pin(front.place.machine, pinned)
    assert (await front.resource.ensure(front.inputs, elsewhere, unheard)).condition is Condition.RUNNING


@pytest.mark.soak
async def test_after_a_restart_it_comes_back_by_itself(front: Front) -> None:
    state = await front.up()
    front.vm.restart()
    eventually(front.answers, 60, "the router answers after its machine's restart")
    seen = await front.resource.read(state)
    assert seen
    assert seen.condition is Condition.RUNNING


@pytest.mark.soak
async def test_another_version_replaces_the_router_and_cuts_no_tunnel(front: Front) -> None:
    before = await front.up()
    unit = tunnel_unit(front.place.layout, tunnels.program(front.place))
    host = front.place.there()
    for name, content in (("machines.json", b'{"machines": []}'), ("key", b"not used\n")):
        await host.write(PurePosixPath("tunnels") / name, content)
    service = await host.ensure(unit, unheard)
    newer = front.inputs.model_copy(update={"code": "0123456789abcdef"})
    after = await front.resource.ensure(newer, before, unheard)
    assert after.condition is Condition.RUNNING
    pids = [{each.name: each.pid for each in state.units} for state in (before, after)]
    assert pids[0]["router"] != pids[1]["router"]
    assert pids[0]["edge"] == pids[1]["edge"]
    assert (await host.observe(unit.name)).pid == service.pid
    versions = front.vm.inside("ls", str(front.place.layout.root / "code")).split()
    assert sorted(versions) == sorted([front.inputs.code, newer.code, "current"])
    await host.remove(unit.name, unheard)


async def test_a_package_that_is_missing_is_installed_and_starts_nothing(front: Front) -> None:
    await front.up()
    policy = ("sh", "-c", "cat /usr/sbin/policy-rc.d 2>/dev/null || :")
    had_policy = front.vm.inside(*policy)
    apt_get(front.vm)
    there = There(front.place, front.inputs.model_copy(update={"tls": TlsInputs(domain=NAME, own=False)}), "")
    told: list[str] = []
    machine = there.machine(await front.place.connect(), told.append)
    try:
        assert await go_through((Packages(),), machine) == ("packages",)
        assert "packages: installing certbot" in told
        assert await go_through((Packages(),), machine) == ()
        asked = front.vm.inside("cat", "/var/log/apt-stand-in")
        assert re.search(r"install -y .*certbot policy=101$", asked, re.MULTILINE)
        assert front.vm.inside(*policy) == had_policy, "as it was before"
    finally:
        front.vm.inside("rm", "-f", "/usr/local/bin/certbot", "/usr/local/bin/apt-get")


async def test_a_python_that_is_missing_is_installed_or_said_to_be_missing(front: Front) -> None:
    machine = There(front.place, front.inputs, "").machine(await front.place.connect(), unheard)
    with without_python(front.vm):
        apt_get(front.vm, "#!/bin/sh\nexit 100\n")
        with pytest.raises(
            CommandError, match=r"(?s)installing Python 3\.11 or newer with venv failed.*Install them by hand"
        ):
            await go_through((Packages(),), machine)
        apt_get(front.vm)
        try:
            assert await go_through((Packages(),), machine) == ("packages",)
            assert await go_through((Packages(),), machine) == ()
        finally:
            front.vm.inside("rm", "-f", "/usr/local/bin/apt-get")


@pytest.mark.soak
async def test_certbots_certificate_replaces_the_placeholder(
    front: Front, authority: Authority, vm: TestMachine, folder: Path
) -> None:
    """With a stand-in that proves the name over HTTP, as the edge's own user, who owns nothing else."""
    given = Path(vm.packages).parent / "authority"
    given.mkdir(mode=0o755)
    for file, name in zip(authority.sign(NAME, called="signed"), ("fullchain.pem", "privkey.pem"), strict=True):
        (given / name).write_bytes(file.read_bytes())
    (given / "port").write_text("80")
    program = f'#!/bin/sh\nexec python3 /srv/checkout/tests/emulators/certbot.py {given} "$@"\n'
    vm.inside("sh", "-c", f"cat >/usr/local/bin/certbot <<'END'\n{program}END\nchmod 755 /usr/local/bin/certbot")
    tls = TlsInputs(domain=NAME, email="ada@example.com", own=False, plain_port=80)
    names = ("api-key", "admin-key", "signing-key")
    keys = {name: front.inputs.keys[name] for name in names}
    state = await front.resource.ensure(front.inputs.model_copy(update={"tls": tls, "keys": keys}), None, unheard)
    assert [unit.name for unit in state.units] == ["router", "edge", "certbot"]
    eventually(front.answers, 60, "the edge shows what the authority has signed")
    seen = await front.resource.read(state)
    assert seen
    assert seen.condition is Condition.RUNNING


@pytest.mark.soak
async def test_two_routers_on_one_postgres_are_replaced_and_nobody_notices(
    front: Front, postgres_server: Postgres, postgres_url: str
) -> None:
    """Its socket is a file, which the machine sees, too. The images of before belong to another database, and go."""
    postgres_server.folder.chmod(0o755)
    await front.resource.delete(await front.up(), unheard)
    keys = front.inputs.keys | {"redis-password": front.resource.site.secrets.fingerprint("redis-password")}
    several = {"database": postgres_url, "redis_port": 6379, "processes": 2, "consumers": 1, "keys": keys}
    inputs = front.inputs.model_copy(update=several)
    state = await front.resource.ensure(inputs, None, unheard)
    assert state.condition is Condition.RUNNING
    assert {unit.name for unit in state.units} == {"router", "router-2", "edge", "consumer", "redis"}
    host = front.place.there()
    async with asyncio.timeout(60):
        while "consumer_takes_jobs" not in await host.tail("consumer", 50):  # noqa: ASYNC110
            await asyncio.sleep(0.3)

    answers, over = list[bool](), asyncio.Event()

    async def keep_asking() -> None:
        while not over.is_set():
            answers.append(await asyncio.to_thread(front.answers))

    asking = asyncio.create_task(keep_asking())
    changed = inputs.model_copy(update={"settings": {"LINK_LIFETIME_S": "7200"}})
    after = await front.resource.ensure(changed, state, unheard)
    over.set()
    await asking
    pids = [{unit.name: unit.pid for unit in each.units} for each in (state, after)]
    assert all(pids[0][name] != pids[1][name] for name in ("router", "router-2", "consumer"))
    assert len(answers) > 20
    assert all(answers), f"{answers.count(False)} of {len(answers)} were refused"
    await front.resource.delete(after, unheard)


async def test_it_leaves_nothing_behind_and_needs_no_machine_that_answers(front: Front) -> None:
    state, layout = await front.up(), front.place.layout
    await front.resource.delete(state, unheard)
    left = (
        f"ls -d {layout.root} {layout.run} /etc/systemd/system/letterpress-* /etc/logrotate.d/lp-* /etc/letterpress; "
        f"id {front.accounts.router}; id {front.accounts.edge}; nft list table inet letterpress; pgrep -a nginx"
    )
    assert front.vm.inside("sh", "-c", f"{{ {left}; }} 2>/dev/null || :") == ""
    assert front.open_ports() == [22]
    front.vm.stop()
    await front.resource.delete(state, unheard)
