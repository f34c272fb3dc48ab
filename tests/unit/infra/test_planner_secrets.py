"""Secrets that the user brings by the environment: kept 0600, named in resources, never shown."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from infra.planning.planner import keep_given
from infra.planning.program import given_secrets
from infra.secrets import S3_CREDENTIALS, SecretStore
from infra.stack import StackDescription
from infra.stack.description import DescriptionError

DESCRIPTION = StackDescription.model_validate(
    {
        "name": "s",
        "model": "tiny",
        "router": {"s3": {"bucket": "images", "access_key_id": "${KEY}", "secret_access_key": "${SECRET}"}},
        "pools": {"a": {"machines": 1, "first_port": 9100}},
    }
)
BROUGHT = {"KEY": "AKIA1", "SECRET": "first"}


@pytest.fixture
def secrets(tmp_path: Path) -> SecretStore:
    return SecretStore(tmp_path / "secrets")


def test_what_the_environment_brings_is_kept_for_the_router_alone(secrets: SecretStore) -> None:
    keep_given(DESCRIPTION, secrets, BROUGHT)
    path = secrets.path(S3_CREDENTIALS)
    assert path.read_text() == "[default]\naws_access_key_id = AKIA1\naws_secret_access_key = first\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert given_secrets(DESCRIPTION) == (S3_CREDENTIALS,)


def test_a_later_deploy_may_do_without_and_a_new_key_replaces_the_old(secrets: SecretStore) -> None:
    keep_given(DESCRIPTION, secrets, BROUGHT)
    before = secrets.fingerprint(S3_CREDENTIALS)
    keep_given(DESCRIPTION, secrets, {})
    assert secrets.fingerprint(S3_CREDENTIALS) == before
    keep_given(DESCRIPTION, secrets, BROUGHT | {"SECRET": "second"})
    assert secrets.fingerprint(S3_CREDENTIALS) != before


def test_what_was_never_brought_is_named_by_its_setting_and_variable(secrets: SecretStore) -> None:
    with pytest.raises(DescriptionError, match=r"router\.s3\.secret_access_key: .* where SECRET is not set"):
        keep_given(DESCRIPTION, secrets, {"KEY": "AKIA1"})
