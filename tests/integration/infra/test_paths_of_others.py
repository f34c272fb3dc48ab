"""Folders that another user made are refused in words, to an ordinary user of this computer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.paths import StackPaths
from tests.integration.infra.nobody import nobody

SCRIPT = """
import os, sys
from pathlib import Path
from infra.paths import PathsError, StackPaths
home, os.environ["LETTERPRESS_RUN"] = sys.argv[1:]
try:
    StackPaths.of("local", Path(home)).create()
except PathsError as error:
    print(error)
"""


def test_a_stack_that_root_began_is_refused_to_others_with_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nobody() as user:
        monkeypatch.setenv("LETTERPRESS_RUN", str(tmp_path / "run"))
        roots = StackPaths.of("local", user.short / "roots")
        roots.create()
        done = user.run(SCRIPT, str(roots.root.parent), str(user.short / "run"))
    assert done.stderr == ""
    assert done.stdout == (
        f"{roots.secrets} cannot be had: Permission denied; {roots.root} belongs to user root. "
        "Do this as that user, or set LETTERPRESS_HOME to a folder of your own\n"
    )


def test_a_run_directory_that_somebody_else_laid_there_is_refused_with_whose_it_is() -> None:
    with nobody() as user:
        laid = user.short / "run"
        laid.mkdir(mode=0o755)
        shutil.chown(laid, "root")
        done = user.run(SCRIPT, str(user.short / "home"), str(laid))
    assert done.stderr == ""
    assert done.stdout.startswith(f"{laid} belongs to user root, and must be ")
    assert "set LETTERPRESS_RUN" in done.stdout
