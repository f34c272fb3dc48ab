"""A yes to a licence, and folders that cannot keep one."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.engine import LoadError
from worker.weights import licences


def test_a_folder_that_cannot_keep_a_yes_is_named_with_the_variable_that_names_another(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(LoadError, match=f"{blocked}.*LETTERPRESS_WORKER_CACHE_DIR"):
        licences.accept(blocked, "owner/name", "a licence", licences.Way.SETTING)


def test_a_record_that_is_no_text_is_named_too(tmp_path: Path) -> None:
    licences.accept(tmp_path, "owner/name", "a licence", licences.Way.SETTING)
    (record,) = tmp_path.rglob("*.json")
    record.write_bytes(b"\xff\xfe")
    with pytest.raises(LoadError, match="LETTERPRESS_WORKER_CACHE_DIR"):
        licences.accepted(tmp_path, "owner/name")


def test_a_worker_says_so_in_a_line_and_ends_as_misconfigured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from worker.__main__ import main  # noqa: PLC0415 - half a second

    blocked, token = tmp_path / "file", tmp_path / "token"
    blocked.touch()
    token.write_text("a-token-of-enough-characters")
    token.chmod(0o600)
    settings = {"CACHE_DIR": blocked, "TOKEN_FILE": token, "MODEL": "owner/name", "ACCEPT_LICENSE": True}
    for name, value in settings.items():
        monkeypatch.setenv(f"LETTERPRESS_WORKER_{name}", str(value))
    assert main() == 78
    assert str(blocked) in capsys.readouterr().err
