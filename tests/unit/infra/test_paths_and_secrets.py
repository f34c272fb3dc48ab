"""Where a stack's files lie, and how its secrets come to be."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.hosts.layout import TUNNELS_ROOM
from infra.paths import SOCKET_NAME_MAX, SOCKET_PATH_MAX, PathsError, StackPaths
from infra.planning.planner import plan
from infra.secrets import ADMIN_KEY, API_KEY, PASSPHRASE, SecretStore, worker_token
from infra.stack import parse


@pytest.fixture
def run_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "run"
    monkeypatch.setenv("LETTERPRESS_RUN", str(base))
    return base


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_folder_of_a_stack_is_its_owners_alone(tmp_path: Path, run_base: Path) -> None:
    paths = StackPaths.of("local", tmp_path / "home")
    paths.create()
    folders = (paths.root, paths.secrets, paths.logs, paths.machines, paths.router, paths.pulumi)
    assert {mode(folder) for folder in folders} == {0o700}


def test_a_deep_folder_still_gets_a_socket_path_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LETTERPRESS_RUN", raising=False)
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 8)
    paths = StackPaths.of("a-stack-with-a-very-long-name-indeed", deep)
    assert len(str(paths.root)) > SOCKET_PATH_MAX
    assert len(str(paths.run / "router.sock")) <= SOCKET_PATH_MAX


def test_the_same_stack_in_two_checkouts_has_two_run_directories(tmp_path: Path, run_base: Path) -> None:
    assert StackPaths.of("local", tmp_path / "a").run != StackPaths.of("local", tmp_path / "b").run


def test_a_run_directory_that_others_may_write_to_is_refused(tmp_path: Path, run_base: Path) -> None:
    run_base.mkdir()
    run_base.chmod(0o777)
    with pytest.raises(PathsError, match="LETTERPRESS_RUN"):
        StackPaths.of("local", tmp_path / "home").create()


def test_a_run_directory_that_is_a_link_is_refused(tmp_path: Path, run_base: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run_base.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PathsError, match="LETTERPRESS_RUN"):
        StackPaths.of("local", tmp_path / "home").create()


def test_a_file_in_a_folders_place_is_named_with_the_setting_that_moves_it(tmp_path: Path, run_base: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(PathsError, match=r"home/local cannot be had: Not a directory.* LETTERPRESS_HOME"):
        StackPaths.of("local", tmp_path / "home").create()


def test_a_run_directory_is_the_same_from_wherever_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LETTERPRESS_RUN", "somewhere/../run")
    assert StackPaths.of("local").run.parent == tmp_path / "run"


def test_a_run_directory_that_is_too_long_for_sockets_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTERPRESS_RUN", "/r")
    room = SOCKET_PATH_MAX - SOCKET_NAME_MAX - len(str(StackPaths.of("local").run)) - 1
    monkeypatch.setenv("LETTERPRESS_RUN", f"/r{room * 'r'}")
    longest = StackPaths.of("local").run / ("s" * SOCKET_NAME_MAX)
    assert len(str(longest)) == SOCKET_PATH_MAX
    monkeypatch.setenv("LETTERPRESS_RUN", f"/r{room * 'r'}rr")
    with pytest.raises(PathsError, match=r"LETTERPRESS_RUN: /r+ is 2 bytes too long"):
        StackPaths.of("local")


POOLS = "model: tiny, pools: {interactive: {machines: 1, first_port: 9100}}"
LOCAL = f"{{name: s, cloud: local, {POOLS}}}"
HOSTS = f"{{name: s, cloud: hosts, {POOLS}, hosts: {{h: {{address: 192.0.2.1}}}}}}"


@pytest.mark.parametrize(("text", "room"), [(HOSTS, TUNNELS_ROOM), (LOCAL, SOCKET_NAME_MAX)], ids=["hosts", "local"])
async def test_nothing_is_planned_whose_sockets_would_find_no_room(
    text: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described, base = parse(text, "s.yaml", tmp_path), tmp_path / "r"
    monkeypatch.setenv("LETTERPRESS_RUN", str(base))
    left = SOCKET_PATH_MAX - room - 1 - len(str(StackPaths.of("s", tmp_path).run))
    monkeypatch.setenv("LETTERPRESS_RUN", f"{base}{left * 'r'}")
    assert (await plan(described, StackPaths.of("s", tmp_path))).declared
    monkeypatch.setenv("LETTERPRESS_RUN", f"{base}{left * 'r'}r")
    with pytest.raises(PathsError, match=r"LETTERPRESS_RUN: .*r is 1 bytes too long for the sockets"):
        await plan(described, StackPaths.of("s", tmp_path))


def test_a_secret_is_drawn_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    store = SecretStore(tmp_path / "secrets")
    first = store.ensure(API_KEY)
    assert store.ensure(API_KEY) == first == SecretStore(tmp_path / "secrets").read(API_KEY)
    assert mode(store.path(API_KEY)) == 0o600
    assert mode(store.folder) == 0o700


def test_secrets_differ_and_are_long(tmp_path: Path) -> None:
    store = SecretStore(tmp_path / "secrets")
    drawn = [store.ensure(name) for name in (API_KEY, ADMIN_KEY, PASSPHRASE, worker_token("a"), worker_token("b"))]
    assert len(set(drawn)) == len(drawn)
    assert all(len(secret) >= 43 for secret in drawn)


def test_whoever_asks_at_the_same_time_gets_the_same_secret(tmp_path: Path) -> None:
    store = SecretStore(tmp_path / "secrets")
    with ThreadPoolExecutor(16) as pool:
        drawn = set(pool.map(lambda _: store.ensure(PASSPHRASE), range(64)))
    assert len(drawn) == 1
    assert os.listdir(store.folder) == [PASSPHRASE]  # noqa: PTH208 - no draft is left behind


def test_a_fingerprint_does_not_tell_the_secret(tmp_path: Path) -> None:
    store = SecretStore(tmp_path / "secrets")
    secret = store.ensure(API_KEY)
    assert store.fingerprint(API_KEY) not in secret
    assert len(store.fingerprint(API_KEY)) == 12


def test_reading_a_secret_that_was_never_drawn_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="admin-key"):
        SecretStore(tmp_path / "secrets").read(ADMIN_KEY)
