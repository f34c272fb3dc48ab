"""How the Pulumi engine's binary is run: in which surroundings, and how it is stopped.

The engine is emulated as what it is: an executable.
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pulumi.automation.errors import CommandError

from infra.engine.command import EngineCommand, InterruptedBeforeError
from tests.waiting import eventually


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


# Like the real one it hears an interrupt even where a shell's background has it ignored, which sh cannot.
STUBBORN = f"""exec {sys.executable} -S -c '
import pathlib, signal, time
def hear(*_): pathlib.Path("asked").open("a").write("asked\\n")
signal.signal(signal.SIGINT, hear)
pathlib.Path("here").touch()
while True: time.sleep(0.05)
'"""


def asked(folder: Path) -> int:
    file = folder / "asked"
    return len(file.read_text().split()) if file.exists() else 0


def interrupted(command: EngineCommand, folder: Path) -> Callable[[], bool]:
    """Interrupts once more, and says afterwards whether the engine has noticed."""
    before = asked(folder)
    command.interrupt()
    return lambda: asked(folder) > before


def test_an_interrupt_that_comes_before_the_engine_starts_keeps_it_from_starting(tmp_path: Path) -> None:
    command = engine(tmp_path, "echo here > here")
    command.interrupt()
    with pytest.raises(InterruptedBeforeError):
        command.run([], str(tmp_path), {})
    assert not (tmp_path / "here").exists()


def test_an_interrupt_between_two_commands_keeps_the_second_from_starting(tmp_path: Path) -> None:
    command = engine(tmp_path, "echo here >> here")
    command.run([], str(tmp_path), {})
    command.interrupt()
    with pytest.raises(InterruptedBeforeError):
        command.run([], str(tmp_path), {})
    assert (tmp_path / "here").read_text() == "here\n"


def test_an_engine_that_ends_for_no_interrupt_is_killed_at_the_third(tmp_path: Path) -> None:
    command = engine(tmp_path, STUBBORN)
    command.kill_grace_s = 0
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(command.run, [], str(tmp_path), {})
        try:
            eventually((tmp_path / "here").exists, 5, "the engine runs")
            for _ in range(2):
                eventually(interrupted(command, tmp_path), 5, "the engine answers in its own time")
            command.interrupt()
            with pytest.raises(CommandError, match="-9"):
                running.result(5)
        finally:
            for _ in range(3):  # whatever went wrong above: nothing waits for it for ever
                command.interrupt()
