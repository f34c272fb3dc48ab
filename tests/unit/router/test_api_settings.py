"""The router starts as the environment says, or says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.artifacts.s3 import Bucket
from router.settings import PREFIX, SettingsError, read_secret, read_settings

REQUIRED = {
    "SOCKET": "/run/x/router.sock",
    "DATA_DIR": "/data",
    "API_KEY_FILE": "/s/api",
    "ADMIN_KEY_FILE": "/s/admin",
    "SIGNING_KEY_FILE": "/s/signing",
    "PUBLIC_URL": "http://127.0.0.1:8080",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in REQUIRED.items():
        monkeypatch.setenv(PREFIX + name, value)


def test_the_defaults_are_one_machine_of_ones_own() -> None:
    settings = read_settings()
    assert (settings.admin_host, settings.admin_port) == ("127.0.0.1", 8081)
    assert settings.database == "sqlite+aiosqlite:////data/router.db"
    assert settings.artifacts == Path("/data/artifacts")
    assert settings.public_base == "http://127.0.0.1:8080"


def test_a_bucket_is_described_without_its_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings().bucket is None
    for name, value in {
        "S3_BUCKET": "images",
        "S3_PREFIX": "/a/b/",
        "S3_ENDPOINT": "http://10.0.0.1:9000",
        "S3_CREDENTIALS_FILE": "/s/s3",
    }.items():
        monkeypatch.setenv(PREFIX + name, value)
    bucket = Bucket("images", "a/b", "us-east-1", "http://10.0.0.1:9000", None, Path("/s/s3"))
    assert read_settings().bucket == bucket


def test_everything_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in REQUIRED:
        monkeypatch.delenv(PREFIX + name)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert str(caught.value).splitlines() == [
        f"{PREFIX}{name}: is not set"
        for name in ("DATA_DIR", "SOCKET", "API_KEY_FILE", "ADMIN_KEY_FILE", "SIGNING_KEY_FILE", "PUBLIC_URL")
    ]


def test_a_socket_path_of_107_bytes_is_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}SOCKET", "/" + "s" * 106)
    assert len(str(read_settings().socket)) == 107
    monkeypatch.setenv(f"{PREFIX}SOCKET", "/" + "é" * 53 + "s")
    with pytest.raises(SettingsError, match=r"LETTERPRESS_ROUTER_SOCKET: .* has 108 bytes; .* ends at 107"):
        read_settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "example.com", "::"])  # noqa: S104 - refused, that is the test
def test_the_admin_app_listens_on_loopback_alone(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}ADMIN_HOST", host)
    with pytest.raises(SettingsError, match="not a loopback address"):
        read_settings()


def test_a_secret_is_read_without_its_newline(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("0123456789abcdef\n")
    file.chmod(0o600)
    assert read_secret(file) == "0123456789abcdef"


def test_a_secret_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("0123456789abcdef")
    file.chmod(0o640)
    with pytest.raises(SettingsError, match=f"chmod 600 {file}"):
        read_secret(file)


def test_a_short_secret_is_refused_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("hunter2")
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="at least 16 characters, this has 7") as caught:
        read_secret(file)
    assert "hunter2" not in str(caught.value)


def test_a_missing_secret_is_named_by_its_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="key: cannot be read"):
        read_secret(tmp_path / "key")


def test_a_databases_password_comes_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p@ss\n")
    (tmp_path / "password").chmod(0o600)
    monkeypatch.setenv(f"{PREFIX}DATABASE_URL", "postgresql+asyncpg://me@db.test/letterpress")
    monkeypatch.setenv(f"{PREFIX}DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    assert read_settings().database == "postgresql+asyncpg://me:p%40ss@db.test/letterpress"
    assert "p@ss" not in repr(read_settings())


@pytest.mark.parametrize(
    ("url", "why"), [("postgresql+asyncpg://me:secret@h/d", "holds a password"), ("letterpress", "is no database URL")]
)
def test_a_database_url_that_cannot_be_used_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, url: str, why: str
) -> None:
    monkeypatch.setenv(f"{PREFIX}DATABASE_URL", url)
    with pytest.raises(SettingsError, match=f"DATABASE_URL: {why}") as caught:
        read_settings()
    assert "secret" not in str(caught.value)
