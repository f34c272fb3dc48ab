"""The router's processes as units: what each is told, by whom it is run, and what systemd thinks of the files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from infra.clouds import Access
from infra.edge import certbot
from infra.edge.config import edge_config
from infra.edge.nginx import edge_unit
from infra.hosts import Unit
from infra.hosts.layout import layout_here, layout_there
from infra.hosts.systemd import unit_file
from infra.paths import StackPaths
from infra.provider.router_inputs import RouterHostInputs, TlsInputs, near_url, public_url
from infra.provider.router_units import (
    all_names,
    authority,
    confined_edge,
    consumer_units,
    edge_settings,
    redis_config,
    redis_unit,
    router_units,
    tunnel_unit,
)

THERE = layout_there("abcdefgh")
INPUTS = RouterHostInputs(
    host=Access("192.0.2.5"),
    program=(),
    code="c0de",
    edge_host="0.0.0.0",  # noqa: S104
    edge_port=443,
    tls=TlsInputs(domain="images.example.com", own=False, plain_port=80),
    admin_host="127.0.0.1",
    admin_port=8081,
    keys={"api-key": "f00d", "database-password": "beef", "redis-password": "cafe"},
    tunnels=True,
    database="postgresql+asyncpg://letterpress@db/letterpress",
    redis_port=6379,
    processes=2,
    consumers=2,
)


def units() -> dict[str, Unit]:
    signs = authority(INPUTS, THERE, PurePosixPath("certbot"), "")
    redis = redis_unit(INPUTS, THERE, PurePosixPath("redis-server"))
    assert signs
    assert redis
    settings = edge_settings(INPUTS, THERE, None, sends_artifacts=True)
    made = (
        *router_units(INPUTS, THERE, sends_artifacts=True),
        *consumer_units(INPUTS, THERE),
        redis,
        confined_edge(edge_unit(settings, PurePosixPath("nginx")), THERE),
        confined_edge(certbot.unit(signs), THERE, makes=THERE.challenges),
        tunnel_unit(THERE, (str(THERE.code("current") / "bin/python"),)),
    )
    return {unit.name: unit for unit in made}


def test_every_process_that_is_described_is_a_unit_with_a_name_of_its_own() -> None:
    assert set(units()) == {*all_names(INPUTS), "tunnels"}
    assert {"router", "router-2", "consumer", "consumer-2", "redis", "edge", "certbot"} == set(all_names(INPUTS))


def test_two_routers_share_everything_but_their_socket_and_their_admin_port() -> None:
    one, two = units()["router"].env, units()["router-2"].env
    differ = {name.removeprefix("LETTERPRESS_ROUTER_") for name in one if one[name] != two[name]}
    assert differ == {"SOCKET", "ADMIN_PORT"}
    assert two["LETTERPRESS_ROUTER_ADMIN_PORT"] == "8082"
    assert one["LETTERPRESS_ROUTER_DRAIN_S"] == "120"
    assert edge_config(edge_settings(INPUTS, THERE, None, sends_artifacts=True)).count("router-2.sock") == 1


def test_passwords_are_named_by_their_files_alone() -> None:
    for name in ("router", "consumer"):
        env = units()[name].env
        assert env["LETTERPRESS_ROUTER_DATABASE_URL"] == INPUTS.database
        assert env["LETTERPRESS_ROUTER_DATABASE_PASSWORD_FILE"] == f"{THERE.secrets}/database-password"
        assert env["LETTERPRESS_ROUTER_REDIS_URL"] == "redis://127.0.0.1:6379/0"
        assert env["LETTERPRESS_ROUTER_REDIS_PASSWORD_FILE"] == f"{THERE.secrets}/redis-password"
    assert "requirepass hunter2\n" in redis_config(INPUTS, THERE, "hunter2")


def test_another_version_is_another_router_and_leaves_the_tunnels_alone() -> None:
    newer = INPUTS.model_copy(update={"code": "d00d"})
    (before, *_), (after, *_) = (router_units(each, THERE, sends_artifacts=True) for each in (INPUTS, newer))
    assert before.fingerprint != after.fingerprint
    assert after.argv[0] == "/var/lib/letterpress/abcdefgh/code/d00d/bin/python"
    assert units()["tunnels"].argv[0].endswith("/code/current/bin/python")


def test_what_everybody_can_talk_to_runs_as_another_user_than_what_holds_the_keys() -> None:
    def user(name: str) -> str:
        (line,) = (line for line in units()[name].service.lines if line.startswith("User="))
        return line.removeprefix("User=")

    assert {user(name) for name in ("edge", "certbot")} == {"lp-abcdefgh-edge"}
    assert {user(name) for name in ("router", "consumer", "redis", "tunnels")} == {"lp-abcdefgh"}
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in units()["edge"].service.lines
    assert "CapabilityBoundingSet=" in units()["router"].service.lines


def test_on_this_computer_nothing_runs_as_anybody_else(tmp_path: Path) -> None:
    here = layout_here(StackPaths.of("s", tmp_path))
    inputs = INPUTS.model_copy(update={"host": None, "program": ("python", "-m", "router")})
    first, second = router_units(inputs, here, sends_artifacts=False)
    assert first.service.lines == ()
    assert first.argv == ("python", "-m", "router")
    assert {unit.argv for unit in consumer_units(inputs, here)} == {("python", "-m", "router.consume")}
    assert second.env["LETTERPRESS_ROUTER_SOCKET"].endswith("/router-2.sock")


def test_the_edge_is_called_by_its_name_and_reached_by_its_machines_address() -> None:
    assert public_url(INPUTS) == "https://images.example.com"
    assert near_url(INPUTS) == "https://192.0.2.5:443"
    nameless = INPUTS.model_copy(update={"tls": TlsInputs(own=True)})
    assert public_url(nameless) == "https://192.0.2.5:443"


def test_systemd_itself_finds_nothing_wrong_with_their_files(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here (make setup-test installs it where it may)")
    paths = []
    for name, unit in units().items():
        text = unit_file(unit, "letterpress-abcdefgh-", PurePosixPath(THERE.root))
        # It looks for the program, which is not on this computer.
        text = re.sub(r"^ExecStart=", "ExecStart=/bin/true ", text, flags=re.MULTILINE)
        file = tmp_path / f"letterpress-abcdefgh-{name}.service"
        file.write_text(text)
        paths.append(str(file))
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    assert [line for line in (done.stdout + done.stderr).splitlines() if "letterpress" in line] == []
