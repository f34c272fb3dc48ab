"""Watch as a unit on a machine of its own: installed, running, and gone again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.hosts.systemd import FOLDER
from infra.watch.unit import unit_name
from tests.hosts import TestMachine, machine
from tests.integration.infra.rented_rig import DESCRIPTION
from tests.waiting import eventually

PYTHON = "/srv/checkout/.venv/bin/python"
DEPLOYED = """
import sys
from pathlib import Path
from infra.deployment import Deployment
from infra.paths import StackPaths
from infra.stack import parse
paths = StackPaths.of("hired")
paths.create()
Deployment(parse(sys.argv[1], "stack.yaml", Path("/root")), paths).remember()
"""
ENVIRONMENT = (
    "env",
    "HOME=/root",
    "LETTERPRESS_HOME=/root/stacks",
    "SPHERON_API_KEY=of-nobody",
    "SPHERON_API_URL=http://127.0.0.1:9",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)


@pytest.fixture
def operators() -> Iterator[TestMachine]:
    with machine("ssh-ed25519 AAAA nobody") as one:
        yield one


def watch(operators: TestMachine, *words: str) -> str:
    program = (PYTHON, "-c", "from infra.cli import main; main()")
    return operators.inside(*ENVIRONMENT, *program, "watch", "hired", *words)


def test_a_unit_goes_on_watching_and_is_taken_away_with_its_accounts(operators: TestMachine) -> None:
    operators.inside(*ENVIRONMENT, PYTHON, "-c", DEPLOYED, DESCRIPTION)
    said = watch(operators, "--install")
    assert "is watched by letterpress-watch-hired.service" in said
    kept = operators.file("/root/stacks/hired/watch.env")
    assert "of-nobody" in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0
    file = operators.file(str(FOLDER / unit_name("hired")))
    assert "of-nobody" not in file.read_text()
    log = operators.file("/root/stacks/hired/logs/watch.log")
    eventually(log.exists, 120, "it watches")
    assert "unanswered" in eventually(log.read_text, 60, "and says that there is no Spheron here")
    before = log.stat().st_size

    operators.restart()
    eventually(lambda: log.stat().st_size > before, 120, "after a restart it goes on")

    assert "watched by systemd no more" in watch(operators, "--uninstall")
    assert not file.exists()
    assert not kept.exists()
    assert Path(str(log)).exists(), "what it did is kept"
    assert "was not watched" in watch(operators, "--uninstall")
