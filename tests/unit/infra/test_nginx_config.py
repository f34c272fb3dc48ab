"""The edge's configuration as text; `tests/integration/infra/test_nginx_edge.py` has nginx read it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from infra.edge import config as edge
from infra.edge.config import (
    ARTIFACTS,
    PATHS,
    ArtifactsFolder,
    Dialect,
    EdgeError,
    EdgeSettings,
    EdgeUser,
    Refusal,
    edge_config,
    refusals,
)
from infra.edge.nginx import edge_unit, find_nginx
from router import contract
from router.api.errors import dialect_of
from router.api.refusals import MAX_BODY_BYTES, Kind
from router.contract import EDGE_ARTIFACTS

RUN = Path("/run/letterpress/local-1")
SETTINGS = EdgeSettings("127.0.0.1", 8080, RUN / "router.sock", Path("/s/router/edge"), RUN, Path("/s/logs"))
NGINX = Path("/usr/sbin/nginx")


def test_an_ordinary_users_edge_names_no_user() -> None:
    assert not re.search(r"^\s*user ", edge_config(SETTINGS), re.MULTILINE)


def test_roots_edge_becomes_another_user() -> None:
    settings = replace(SETTINGS, user=EdgeUser("www-data", 33, "www-data", 33))
    assert edge_config(settings).startswith("user www-data www-data;\n")


def test_an_ipv6_address_is_written_as_nginx_wants_it() -> None:
    assert "listen [::1]:8080;" in edge_config(replace(SETTINGS, host="::1"))


def test_nothing_is_read_from_or_written_to_the_machines_own_nginx() -> None:
    given = {SETTINGS.folder, SETTINGS.run, SETTINGS.logs}
    paths = [Path(found) for found in re.findall(r'"(?:unix:)?(/[^"]*)"', edge_config(SETTINGS))]
    assert len(paths) == 8
    assert all(given & set(path.parents) for path in paths)
    assert "include" not in edge_config(SETTINGS)


def test_quotes_and_spaces_in_a_path_are_escaped() -> None:
    text = edge_config(replace(SETTINGS, logs=Path('/a "b" \\c')))
    assert 'access_log "/a \\"b\\" \\\\c/edge.access.log" edge;' in text


def test_a_path_that_nginx_has_no_way_to_say_is_refused() -> None:
    with pytest.raises(EdgeError, match=r"/home/\$me.*move the checkout"):
        edge_config(replace(SETTINGS, logs=Path("/home/$me")))


@pytest.mark.parametrize("refusal", refusals(1024), ids=lambda refusal: refusal.type)
@pytest.mark.parametrize("dialect", Dialect)
def test_every_refusal_fits_into_nginxs_quotes_and_is_json(refusal: Refusal, dialect: Dialect) -> None:
    body = refusal.body(dialect)
    assert not set(body) & set("'$\\\n")
    assert json.loads(body)


def test_the_edge_and_the_router_refuse_the_same_in_the_same_words() -> None:
    routers = {str(kind): kind for kind in Kind}
    shared = [(refusal, routers[refusal.type]) for refusal in refusals(1024) if refusal.type in routers]
    assert {refusal.type for refusal, _ in shared} >= {"body_too_large", "method_not_allowed", "unavailable"}
    for refusal, kind in shared:
        assert refusal.status == kind.status
        assert refusal.title == kind.headline or refusal.type == "internal"  # which of the two failed matters


def test_the_edge_chooses_the_dialect_that_the_router_would() -> None:
    ideogram = ("/v1/ideogram-v4/async/generate", "/v1/ideogram-v3/x", "/v1/ideogram-v5", "/v1/generations/1", "/remix")
    for dialect, pattern in PATHS.items():
        for path in (
            "/generate",
            "/generate/x",
            "/v1/images/generations",
            "/v1/models",
            "/v1/jobs",
            "/generated",
            *ideogram,
        ):
            chosen = bool(re.match(rf"{pattern}(/|$)", path))
            assert chosen is (dialect_of(path).value == dialect.value)


def test_the_edge_and_the_router_bound_a_body_alike() -> None:
    assert SETTINGS.max_body_bytes == MAX_BODY_BYTES
    assert edge.MAX_BATCH_BYTES == contract.MAX_BATCH_BYTES


def test_the_edge_and_the_router_mean_the_same_folder_of_images() -> None:
    assert ARTIFACTS == EDGE_ARTIFACTS
    folder = ArtifactsFolder(Path("/s/router/data/artifacts"), Path("/s"))
    assert f"location {EDGE_ARTIFACTS} {{" in edge_config(replace(SETTINGS, artifacts=folder))
    assert EDGE_ARTIFACTS not in edge_config(SETTINGS)


def test_every_cause_leads_to_one_answer() -> None:
    causes = [cause for refusal in refusals(1024) for cause in refusal.causes]
    assert len(causes) == len(set(causes))


def test_a_changed_configuration_is_a_reload_and_a_changed_address_a_restart() -> None:
    before = edge_unit(SETTINGS, NGINX)
    bigger = edge_unit(replace(SETTINGS, max_body_bytes=5), NGINX)
    moved = edge_unit(replace(SETTINGS, port=8081), NGINX)
    assert (bigger.fingerprint == before.fingerprint, bigger.config == before.config) == (True, False)
    assert moved.fingerprint != before.fingerprint


def test_nginx_is_found_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nginx = tmp_path / "nginx"
    nginx.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_nginx() == nginx
