"""HTTPS at the edge: real nginx with a user's certificate, or with one that certbot's stand-in gets."""

from __future__ import annotations

import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from infra.edge.certificate import CertificateError, read_certificate, self_signed
from infra.edge.nginx import find_nginx
from infra.paths import StackPaths
from infra.planning.planner import keep_certificate
from infra.provider.resource import Condition, IncompleteError
from infra.provider.router_host import RouterHostResource
from infra.provider.router_inputs import RouterHostInputs, RouterHostState, TlsInputs
from infra.provider.site import Site
from tests.authority import DAY, Authority
from tests.emulators import certbot, stand_ins
from tests.integration.infra.sleepers import until
from tests.ports import free_ports

pytestmark = pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed (make deploy installs it)")

NAME = "images.example.com"


def silent(stage: str) -> None:
    """Nobody follows."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="lp-", dir="/tmp") as run:
        Path(run).chmod(0o711)
        monkeypatch.setenv("LETTERPRESS_RUN", f"{run}/r")
        site = Site(StackPaths.of("tls", tmp_path / "home"), {})
        site.paths.create()
        yield site


def keep(site: Site, files: tuple[Path, Path]) -> None:
    keep_certificate((str(files[0]), str(files[1])), NAME, site.secrets, {})


def described(site: Site, ports: list[int], *, own: bool) -> RouterHostInputs:
    names = ("tls-certificate", "tls-key") if own else ()
    return RouterHostInputs(
        program=(sys.executable, stand_ins.__file__, "router"),
        code="1",
        edge_host="127.0.0.1",
        edge_port=ports[0],
        tls=TlsInputs(domain=NAME, email="ada@example.com", own=own, plain_port=ports[1]),
        admin_host="127.0.0.1",
        admin_port=ports[2],
        keys={name: site.secrets.fingerprint(name) for name in names},
    )


@asynccontextmanager
async def up(site: Site, inputs: RouterHostInputs) -> AsyncIterator[RouterHostState]:
    resource = RouterHostResource(site)
    try:
        yield await resource.ensure(inputs, None, silent)
    finally:
        await resource.delete(RouterHostState.model_validate(inputs.model_dump()), silent)


@asynccontextmanager
async def client(port: int, root: Path) -> AsyncIterator[httpx.AsyncClient]:
    """One that trusts the authority and nobody else, and calls the edge by its name."""
    context = ssl.create_default_context(cafile=str(root))
    async with httpx.AsyncClient(verify=context, trust_env=False, base_url=f"https://127.0.0.1:{port}") as asking:
        asking.headers["Host"] = NAME
        yield asking


ASKED = {"sni_hostname": NAME}


async def test_the_edge_shows_the_users_certificate_and_takes_a_new_one_over_by_a_reload(
    site: Site, authority: Authority
) -> None:
    ports = free_ports(3)
    keep(site, authority.sign(NAME))
    inputs = described(site, ports, own=True)
    async with up(site, inputs) as state, client(ports[0], authority.root) as asking:
        assert state.condition is Condition.RUNNING
        assert state.url == f"https://{NAME}:{ports[0]}"
        answer = await asking.get("/healthz", extensions=ASKED)
        assert answer.status_code == 200
        assert answer.headers["strict-transport-security"] == "max-age=63072000"
        refused = await asking.get("/.edge/problem/404", extensions=ASKED)
        assert "strict-transport-security" in refused.headers
        before = {unit.name: unit.pid for unit in state.units}

        # Plain HTTP has only the way to HTTPS, and none for a request that brings its key.
        async with httpx.AsyncClient(trust_env=False, base_url=f"http://127.0.0.1:{ports[1]}") as plain:
            sent_on = await plain.get("/v1/models?x=1", headers={"Host": NAME})
            assert (sent_on.status_code, sent_on.headers["location"]) == (
                301,
                f"https://{NAME}:{ports[0]}/v1/models?x=1",
            )
            assert (await plain.post("/generate", json={})).status_code == 403

        keep(site, authority.sign(NAME, called="next"))
        renewed = await RouterHostResource(site).ensure(described(site, ports, own=True), state, silent)
        assert {unit.name: unit.pid for unit in renewed.units} == before
        kept = sorted(file.suffix for file in (site.paths.router / "edge/tls").iterdir())
        assert kept == [".key", ".pem"]
        serial = authority_serial(site)
        await until(lambda: served_serial(ports[0]) == serial)


async def test_a_certificate_that_nginx_does_not_take_leaves_the_one_in_force(site: Site, authority: Authority) -> None:
    ports = free_ports(3)
    keep(site, authority.sign(NAME))
    async with up(site, described(site, ports, own=True)) as state, client(ports[0], authority.root) as asking:
        site.secrets.keep("tls-key", authority.sign("other.example.com", called="other")[1].read_text().strip())
        with pytest.raises(IncompleteError, match="key values mismatch"):
            await RouterHostResource(site).ensure(described(site, ports, own=True), state, silent)
        assert (await asking.get("/healthz", extensions=ASKED)).status_code == 200
        in_force = (site.paths.router / "edge/nginx.conf").read_text()
        assert f"{state.keys['tls-key']}.key" in in_force


async def test_certbot_proves_the_name_and_its_certificate_replaces_the_placeholder(
    site: Site, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_ports(3)
    signed = authority.sign(NAME)
    (tmp_path / "fullchain.pem").write_bytes(signed[0].read_bytes())
    (tmp_path / "privkey.pem").write_bytes(signed[1].read_bytes())
    (tmp_path / "port").write_text(str(ports[1]))
    program = tmp_path / "bin" / "certbot"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {certbot.__file__} {tmp_path} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/sbin:/usr/bin:/bin:/sbin")
    async with up(site, described(site, ports, own=False)) as state, client(ports[0], authority.root) as asking:
        assert [unit.name for unit in state.units] == ["router", "edge", "certbot"]
        chain = site.paths.router / "edge/tls/chain.pem"
        await until(lambda: not self_signed(chain.read_bytes()))
        await until(lambda: served_serial(ports[0]) == read_certificate(*signed, datetime.now(UTC)).leaf.serial_number)
        assert (await asking.get("/healthz", extensions=ASKED)).status_code == 200
        assert "is in use" in (site.paths.logs / "certbot.log").read_text()


def test_a_certificate_is_refused_before_anything_is_changed(site: Site, authority: Authority, tmp_path: Path) -> None:
    chain, key = authority.sign(NAME)
    for wrong, said in (
        ((chain, tmp_path / "nowhere"), r"router\.edge\.tls\.key: .*cannot be read"),
        ((chain, authority.sign("b.example.com", called="b")[1]), "is not the key of"),
        ((key, key), "is no certificate in PEM"),
        (authority.sign(NAME, -DAY, "old"), "ran out on"),
        (authority.sign("b.example.com", called="c"), r"is for b\.example\.com, not for images\.example\.com"),
    ):
        with pytest.raises(CertificateError, match=said):
            keep(site, wrong)
    assert not site.secrets.path("tls-key").exists()


def authority_serial(site: Site) -> int:
    paths = (site.secrets.path("tls-certificate"), site.secrets.path("tls-key"))
    return read_certificate(*paths, datetime.now(UTC)).leaf.serial_number


def served_serial(port: int) -> int:
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode()).serial_number
