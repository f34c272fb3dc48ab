"""What a deploy tells people to paste."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from infra.endpoint import Endpoint, relative_to


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    keys = tmp_path / "a folder"
    keys.mkdir()
    for name in ("api-key", "admin-key"):
        (keys / name).write_text(f"secret-{name}\n")
    return Endpoint("http://127.0.0.1:1", "http://127.0.0.1:2", keys / "api-key", keys / "admin-key")


def test_scripts_get_addresses_and_keys(endpoint: Endpoint) -> None:
    assert json.loads(endpoint.as_json()) == {
        "url": "http://127.0.0.1:1",
        "api_key": "secret-api-key",
        "admin_url": "http://127.0.0.1:2",
        "admin_key": "secret-admin-key",
    }


def test_the_example_names_the_keys_file_and_never_the_key(endpoint: Endpoint, tmp_path: Path) -> None:
    command = endpoint.example(tmp_path, "interactive")
    assert "secret" not in command
    assert "$(cat 'a folder/api-key')" in command


@pytest.mark.parametrize(("pool", "path"), [("interactive", "/generate"), ("batch", "/v1/images/generations")])
def test_the_example_is_one_shell_command_with_a_json_body_that_asks_its_pool(
    endpoint: Endpoint, tmp_path: Path, pool: str, path: str
) -> None:
    words = shlex.split(endpoint.example(tmp_path, pool))
    assert endpoint.url + path in words
    body = json.loads(words[words.index("-d") + 1])
    assert body["prompt"]
    assert body.get("pool", "interactive") == pool
    assert re.search(r"> first.png$", endpoint.example(tmp_path, pool))


def test_a_path_below_is_shown_relative_and_any_other_whole() -> None:
    assert relative_to(Path("/a/b/c"), Path("/a")) == Path("b/c")
    assert relative_to(Path("/a/b/c"), Path("/a/d")) == Path("/a/b/c")
