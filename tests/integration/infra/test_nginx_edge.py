"""The edge: real nginx, in front of a small server on the router's socket."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from infra.edge.config import EdgeError, EdgeSettings, edge_config
from infra.edge.nginx import configure_edge, edge_user, find_nginx
from infra.hosts import UnitState
from infra.hosts.local import LocalHost
from infra.hosts.processes import process
from tests.integration.infra.nobody import nobody
from tests.integration.infra.sleepers import until
from tests.integration.infra.upstream import LONG_WAIT_S, Upstream
from tests.ports import free_ports

nginx = find_nginx()
pytestmark = pytest.mark.skipif(nginx is None, reason="nginx is not installed (make deploy installs it)")


def silent(stage: str) -> None:
    """Nobody follows."""


@contextmanager
def run_directory() -> Iterator[Path]:
    """A short one, whose parents let everyone pass: pytest's own are their owner's alone."""
    with tempfile.TemporaryDirectory(prefix="lp-") as base:
        Path(base).chmod(0o711)
        yield Path(base) / "run"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[EdgeSettings]:
    (port,) = free_ports(1)
    with run_directory() as run:
        yield EdgeSettings(
            "127.0.0.1", port, run / "router.sock", tmp_path / "with a space", run, tmp_path / "logs", edge_user()
        )


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[LocalHost]:
    host = LocalHost("here", tmp_path / "host", tmp_path / "logs", first_moment=0.05)
    yield host
    await host.remove("edge", silent)


@pytest.fixture
async def client(settings: EdgeSettings, host: LocalHost) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running edge."""
    await deploy(settings, host)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", timeout=20, trust_env=False) as client:
        yield client


async def deploy(settings: EdgeSettings, host: LocalHost) -> int:
    """Configure and ensure; the pid, once it listens."""
    assert nginx
    status = await host.ensure(await configure_edge(settings, nginx), silent)
    await until(lambda: listening(settings.port))
    assert status.pid
    return status.pid


def listening(port: int) -> bool:
    wanted = f":{port:04X} 00000000:0000 0A "
    return wanted in Path("/proc/net/tcp").read_text()


def workers(master: int) -> set[int]:
    children = Path(f"/proc/{master}/task/{master}/children").read_text()
    return {int(pid) for pid in children.split()}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if process(pid)}


def sees(user: str, group: str, socket: Path) -> bool:
    """Whether somebody else can get at the socket."""
    drop = [shutil.which("setpriv") or "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--"]
    return subprocess.run([*drop, "test", "-S", socket], check=False).returncode == 0


@asynccontextmanager
async def router(settings: EdgeSettings) -> AsyncIterator[Upstream]:
    upstream = Upstream()
    server = await asyncio.start_unix_server(upstream.connected, settings.socket)
    settings.socket.chmod(0o666)
    async with server:
        yield upstream
        await asyncio.gather(*upstream.answering)


def dialect_of(answer: httpx.Response) -> str:
    """Which dialect an error speaks, checked in full."""
    body = answer.json()
    if answer.headers["content-type"] == "application/problem+json":
        assert set(body) == {"type", "title", "status", "detail", "errors"}
        assert body["status"] == answer.status_code
        return "problem"
    assert answer.headers["content-type"] == "application/json"
    if "error" in body:
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return "openai"
    assert isinstance(body["detail"], str)
    return "seed"


every_dialect = pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/generate", "seed"),
        ("/v1/images/generations", "openai"),
        ("/v1/models", "openai"),
        ("/v1/jobs", "problem"),
        ("/generated", "problem"),
    ],
)


async def test_a_request_reaches_the_router_with_its_headers_and_an_id(
    client: httpx.AsyncClient, settings: EdgeSettings
) -> None:
    async with router(settings) as upstream:
        answer = await client.get("/v1/jobs?a=b%2Fc", headers={"X-Forwarded-For": "8.8.8.8"})
    head = upstream.asked[0]
    assert (answer.status_code, answer.text) == (200, "hello")
    assert head.startswith("GET /v1/jobs?a=b%2Fc HTTP/1.1\r\n")
    assert answer.headers.get_list("x-request-id") != ["theirs"]
    for line in (
        f"X-Request-Id: {answer.headers['x-request-id']}",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: http",
        f"Host: 127.0.0.1:{settings.port}",
        f"X-Forwarded-Host: 127.0.0.1:{settings.port}",
    ):
        assert f"{line}\r\n" in head


@pytest.mark.parametrize(("given", "kept"), [("order-66", True), ("x" * 65, False), ('a"b', False)])
async def test_a_callers_own_request_id_is_kept_if_it_can_do_no_harm(
    client: httpx.AsyncClient, settings: EdgeSettings, given: str, kept: bool
) -> None:
    async with router(settings):
        answer = await client.get("/", headers={"X-Request-Id": given})
    assert (answer.headers["x-request-id"] == given) is kept


async def test_the_first_event_arrives_before_the_last_is_sent(
    client: httpx.AsyncClient, settings: EdgeSettings
) -> None:
    async with router(settings) as upstream, client.stream("GET", "/events") as answer:
        chunks = answer.aiter_text()
        assert "queued" in await anext(chunks)
        upstream.release.set()
        assert "succeeded" in await anext(chunks)


async def test_an_answer_may_take_its_time(client: httpx.AsyncClient, settings: EdgeSettings) -> None:
    async with router(settings):
        answer = await client.get("/slow")
    assert (answer.status_code, answer.text) == (200, "at last")
    assert answer.elapsed.total_seconds() >= LONG_WAIT_S


@every_dialect
async def test_a_body_of_50_mb_is_refused_in_the_paths_dialect(
    client: httpx.AsyncClient, settings: EdgeSettings, path: str, dialect: str
) -> None:
    async with router(settings) as upstream:
        answer = await client.post(path, content=b"x" * 50_000_000)
    assert (answer.status_code, dialect_of(answer)) == (413, dialect)
    assert upstream.asked == []


async def test_a_body_that_hides_its_length_is_refused_as_well(
    client: httpx.AsyncClient, settings: EdgeSettings
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    async with router(settings) as upstream:
        answer = await client.post("/generate", content=endless())
    assert (answer.status_code, dialect_of(answer)) == (413, "seed")
    assert upstream.asked == []


async def test_a_body_of_exactly_the_bound_passes(client: httpx.AsyncClient, settings: EdgeSettings) -> None:
    async with router(settings):
        answer = await client.post("/generate", content=b"x" * settings.max_body_bytes)
    assert answer.status_code == 200


async def test_a_batch_may_be_larger_than_every_other_body(client: httpx.AsyncClient, settings: EdgeSettings) -> None:
    async with router(settings):
        answer = await client.post("/v1/jobs/batch", content=b"x" * (3 * settings.max_body_bytes))
    assert answer.status_code == 200


@every_dialect
async def test_while_the_router_is_away_every_path_says_so_and_when_to_come_back(
    client: httpx.AsyncClient, path: str, dialect: str
) -> None:
    answer = await client.post(path, json={})
    assert (answer.status_code, dialect_of(answer)) == (503, dialect)
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"]


async def test_a_router_that_comes_back_is_used_at_once(client: httpx.AsyncClient, settings: EdgeSettings) -> None:
    assert (await client.get("/")).status_code == 503
    async with router(settings):
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/refused", 503), ("/missing", 404)])
async def test_the_routers_own_errors_pass_untouched(
    client: httpx.AsyncClient, settings: EdgeSettings, path: str, status: int
) -> None:
    async with router(settings):
        answer = await client.get(path)
    assert (answer.status_code, answer.json()) == (status, {"whose": "the router"})


@pytest.mark.parametrize(
    ("request_line", "headers", "status", "dialect"),
    [
        ("GET /generate HTTP/1.1", "", 400, "seed"),
        ("GET /generate HTTP/1.1", "Host: a\r\nTransfer-Encoding: x\r\n", 400, "seed"),
        ("GET /v1/models HTTP/3.9", "Host: a\r\n", 400, "openai"),
        ("nonsense", "", 400, "problem"),
        ("TRACE /v1/jobs HTTP/1.1", "Host: a\r\n", 405, "problem"),
        (f"GET /v1/models?{'a' * 40_000} HTTP/1.1", "Host: a\r\n", 414, "openai"),
        ("GET /generate HTTP/1.1", f"Host: a\r\nLong: {'a' * 40_000}\r\n", 431, "seed"),
        ("GET /.edge/seed/503 HTTP/1.1", "Host: a\r\n", 404, "problem"),
    ],
)
async def test_what_nginx_refuses_by_itself_is_refused_in_the_paths_dialect(
    client: httpx.AsyncClient, settings: EdgeSettings, request_line: str, headers: str, status: int, dialect: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", settings.port)
    writer.write(f"{request_line}\r\n{headers}Connection: close\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 20)).decode().partition("\r\n\r\n")
    writer.close()
    kind = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("Content-Type"))
    answer = httpx.Response(int(head.split()[1]), headers={"content-type": kind}, content=body)
    assert (answer.status_code, dialect_of(answer)) == (status, dialect)


async def test_the_access_log_has_a_line_of_json_for_a_request_and_no_query(
    client: httpx.AsyncClient, settings: EdgeSettings
) -> None:
    answer = await client.get("/artifacts/a.png?signature=secret", headers={"User-Agent": 'a "quoted" agent'})
    log = settings.logs / "edge.access.log"
    await until(lambda: log.read_text().endswith("\n"))
    line = json.loads(log.read_text())
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/artifacts/a.png", "503")
    assert line["user_agent"] == 'a "quoted" agent'
    assert float(line["seconds"]) >= 0
    assert "secret" not in log.read_text()


async def test_a_changed_configuration_is_taken_over_without_dropping_who_waits(
    client: httpx.AsyncClient, settings: EdgeSettings, host: LocalHost
) -> None:
    master = (await host.observe("edge")).pid
    async with router(settings) as upstream:
        waiting = asyncio.create_task(client.get("/slow"))
        await until(lambda: upstream.asked)
        assert await deploy(replace(settings, max_body_bytes=10), host) == master
        async with asyncio.timeout(20):
            # Each on a connection of its own: the old workers hang up on those that are idle.
            asking = {"Connection": "close"}
            while (await client.post("/", content=b"x" * 11, headers=asking)).status_code != 413:
                pass
        assert (await waiting).text == "at last"


async def test_a_changed_port_moves_the_edge(
    client: httpx.AsyncClient, settings: EdgeSettings, host: LocalHost
) -> None:
    (port,) = free_ports(1)
    await deploy(replace(settings, port=port), host)
    assert (listening(settings.port), listening(port)) == (False, True)


async def test_a_configuration_that_nginx_refuses_changes_nothing(settings: EdgeSettings, host: LocalHost) -> None:
    master = await deploy(settings, host)
    with pytest.raises(EdgeError, match=r"999\.0\.0\.1"):
        await deploy(replace(settings, host="999.0.0.1"), host)
    assert (settings.folder / "nginx.conf").read_text() == edge_config(settings)
    assert await deploy(settings, host) == master


async def test_nginx_killed_at_its_head_is_orphaned_and_repaired(settings: EdgeSettings, host: LocalHost) -> None:
    master = await deploy(settings, host)
    await until(lambda: len(workers(master)) == settings.workers)
    orphans = workers(master)
    os.kill(master, signal.SIGKILL)
    await until(lambda: not alive({master}))
    assert (await host.observe("edge")).state is UnitState.ORPHANED
    assert listening(settings.port)
    repaired = await deploy(settings, host)
    assert repaired != master
    assert not alive(orphans)


async def test_removing_the_edge_leaves_no_process_and_no_listener(settings: EdgeSettings, host: LocalHost) -> None:
    master = await deploy(settings, host)
    children = workers(master)
    await host.remove("edge", silent)
    assert not alive({master, *children})
    assert not listening(settings.port)


async def test_two_edges_stand_side_by_side(
    client: httpx.AsyncClient, settings: EdgeSettings, host: LocalHost, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    second = LocalHost("second", tmp_path / "second", tmp_path / "second-logs", first_moment=0.05)
    with run_directory() as run:
        others = replace(settings, port=port, socket=run / "r.sock", run=run, folder=second.root, logs=second.logs)
        await deploy(others, second)
        await second.remove("edge", silent)
    assert (listening(settings.port), listening(port)) == (True, False)


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
async def test_under_root_only_nginxs_user_gets_to_the_routers_socket(settings: EdgeSettings, host: LocalHost) -> None:
    await deploy(settings, host)
    assert settings.user
    async with router(settings):
        assert sees(settings.user.name, settings.user.group, settings.socket)
        assert not sees("nobody", "nogroup", settings.socket)


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
async def test_a_run_directory_that_nginxs_user_cannot_reach_is_an_error_that_says_so(
    settings: EdgeSettings, host: LocalHost, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.getbasetemp() / "run"  # pytest makes its folders for their owner alone
    with pytest.raises(EdgeError, match=r"may not enter .*set LETTERPRESS_RUN"):
        await deploy(replace(settings, run=run, socket=run / "r.sock"), host)


def test_an_ordinary_users_edge_serves_from_a_deep_folder() -> None:
    (port,) = free_ports(1)
    script = """
import asyncio, sys, urllib.error, urllib.request
from pathlib import Path
from infra.edge.config import EdgeSettings
from infra.hosts.local import LocalHost
from infra.edge.nginx import configure_edge, edge_user, find_nginx

deep, short, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
run = short / "run"
settings = EdgeSettings("127.0.0.1", port, run / "r.sock", deep / "edge", run, deep / "logs", edge_user())
host = LocalHost("there", deep / "host", deep / "logs")

async def main():
    await host.ensure(await configure_edge(settings, find_nginx()), lambda stage: None)
    answer = None
    while answer is None:  # until it listens; the test's own deadline ends this
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/generate", data=b"x" * 2_000_000)
        except urllib.error.HTTPError as error:
            answer = f"{error.code} {error.read().decode()}"
        except urllib.error.URLError:
            pass
    print(answer)
    await host.remove("edge", lambda stage: None)

asyncio.run(main())
"""
    with nobody() as user:
        done = user.run(script, str(user.deep), str(user.short), str(port))
    assert (done.stderr, done.stdout) == ("", '413 {"detail": "the body is larger than 1048576 bytes"}\n')
    assert not listening(port)
