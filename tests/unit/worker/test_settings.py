"""What a worker accepts from its environment, and what it says of the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.contract import Tier
from worker.settings import PREFIX, EngineName, Settings, SettingsError

TOKEN = "a-token-of-more-than-16-characters"


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def settings(token_file: Path, **given: str) -> Settings:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {"token_file": str(token_file), **given}.items():
            environment.setenv(PREFIX + name.upper(), value)
        return Settings.from_environment()


def test_a_token_file_is_all_that_must_be_said(token_file: Path) -> None:
    made = settings(token_file)
    assert (made.model, made.engine, made.device, made.host) == ("tiny", EngineName.FAST, "auto", "127.0.0.1")
    assert made.read_token() == TOKEN


def test_without_a_token_file_the_variable_is_named() -> None:
    with pytest.raises(SettingsError, match="LETTERPRESS_WORKER_TOKEN_FILE: Field required"):
        Settings.from_environment()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])  # noqa: S104 - refused
def test_a_host_that_others_can_reach_is_refused(token_file: Path, host: str) -> None:
    with pytest.raises(SettingsError, match=r"LETTERPRESS_WORKER_HOST.*loopback.*SSH forward"):
        settings(token_file, host=host)


def test_a_load_balancer_that_is_said_to_be_there_may_reach_it(token_file: Path) -> None:
    assert settings(token_file, host="0.0.0.0", balanced="true").host == "0.0.0.0"  # noqa: S104 - asked for


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_is_accepted_by_any_of_its_names(token_file: Path, host: str) -> None:
    assert settings(token_file, host=host).host == host


def test_a_misspelled_variable_is_an_error_and_not_a_default(token_file: Path) -> None:
    with pytest.raises(SettingsError, match=r"LETTERPRESS_WORKER_PROT: no such setting.*LETTERPRESS_WORKER_PORT"):
        settings(token_file, prot="8100")


def test_a_token_in_the_environment_is_refused_without_being_repeated(token_file: Path) -> None:
    with pytest.raises(SettingsError, match="LETTERPRESS_WORKER_TOKEN_FILE") as caught:
        settings(token_file, token=TOKEN)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("model", ["tiny", "ideogram-ai/ideogram-4-nf4-diffusers", "/srv/weights", "./w", "~/w"])
def test_a_model_is_tiny_a_repository_or_a_folder(token_file: Path, model: str) -> None:
    assert settings(token_file, model=model).model == model


@pytest.mark.parametrize("model", ["", "ideogram", "a/b/c", "a b/c", "https://example.org/a"])
def test_another_model_is_refused_with_the_three_that_there_are(token_file: Path, model: str) -> None:
    with pytest.raises(SettingsError, match=r"LETTERPRESS_WORKER_MODEL.*tiny, a hub repository"):
        settings(token_file, model=model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "http"),
        ("device", "gpu"),
        ("engine", "faster"),
        ("tier", "fp16"),
        ("warm_sizes", "1024"),
        ("warm_sizes", "1000x1024"),
        ("warm_sizes", "2048x256"),
        ("keep_finished_s", "0"),
    ],
)
def test_a_wrong_value_names_its_variable(token_file: Path, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=PREFIX + name.upper()):
        settings(token_file, **{name: value})


@pytest.mark.parametrize("tier", [tier for tier in Tier if tier is not Tier.EXACT])
def test_the_reference_engine_has_no_other_arithmetic_and_says_so(token_file: Path, tier: Tier) -> None:
    with pytest.raises(SettingsError, match=f"^{PREFIX}TIER: {tier} is the fast engine's;.*or take engine fast$"):
        settings(token_file, engine="reference", tier=tier)
    assert settings(token_file, engine="reference").tier is Tier.EXACT
    assert settings(token_file, tier=tier).tier is tier


def test_a_token_that_others_can_read_is_refused(token_file: Path) -> None:
    token_file.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        settings(token_file).read_token()


@pytest.mark.parametrize("content", [b"", b"short", b"two lines of\ntoken text here", b"\xff" * 32])
def test_a_file_that_holds_no_token_is_refused(token_file: Path, content: bytes) -> None:
    token_file.write_bytes(content)
    with pytest.raises(SettingsError, match="TOKEN_FILE"):
        settings(token_file).read_token()


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        settings(tmp_path / "nowhere").read_token()


def test_what_others_import_of_the_worker_loads_no_torch() -> None:
    code = "import sys, worker.contract, worker.settings, worker.presets, worker.runner, worker.app, worker.__main__; "
    code += "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
