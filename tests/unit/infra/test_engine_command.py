"""How the Pulumi engine's binary is run: in which surroundings, and how it is stopped.

The engine is emulated as what it is: an executable.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from infra.engine.command import EngineCommand


def engine(folder: Path, script: str) -> EngineCommand:
    binary = folder / "pulumi"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    return EngineCommand(binary)


def test_what_the_user_has_set_for_a_pulumi_of_their_own_does_not_reach_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "")  # empty, and yet preferred to the file
    monkeypatch.setenv("PULUMI_BACKEND_URL", "file:///theirs")
    monkeypatch.setenv("PULUMI_ACCESS_TOKEN", "what their backend asks for")
    monkeypatch.setenv("AWS_PROFILE", "theirs")
    ours = {"PULUMI_CONFIG_PASSPHRASE_FILE": "/ours", "PULUMI_BACKEND_URL": "file:///ours"}
    said = engine(tmp_path, "env").run([], str(tmp_path), ours).stdout.splitlines()
    assert sorted(line for line in said if line.startswith("PULUMI_")) == [
        "PULUMI_ACCESS_TOKEN=what their backend asks for",
        "PULUMI_AUTOMATION_API=true",
        "PULUMI_BACKEND_URL=file:///ours",
        "PULUMI_CONFIG_PASSPHRASE_FILE=/ours",
    ]
    assert "AWS_PROFILE=theirs" in said
