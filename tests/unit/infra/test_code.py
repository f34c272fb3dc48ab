"""What counts as other code: a change of it must restart whatever runs it, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.paths import repository_root
from infra.planning.code import code_fingerprint
from infra.planning.planner import programs_here
from infra.planning.program import Programs


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what runs."""
    for package in ("worker", "router"):
        shutil.copytree(repository_root() / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository_root() / "constraints.txt", tmp_path)
    return tmp_path


def other(before: Programs, now: Programs) -> set[str]:
    return {name for name in ("worker", "router") if getattr(before, name).code != getattr(now, name).code}


@pytest.mark.parametrize(
    ("file", "restarted"),
    [
        ("worker/contract.py", {"worker", "router"}),
        ("worker/captions.py", {"worker", "router"}),
        ("constraints.txt", {"worker", "router"}),
        ("worker/engine/reference.py", {"worker"}),
        ("router/api/generate.py", {"router"}),
    ],
)
def test_a_changed_file_is_other_code_for_whoever_runs_it(checkout: Path, file: str, restarted: set[str]) -> None:
    before = programs_here(checkout)
    with (checkout / file).open("a") as opened:
        opened.write("\n# another line\n")
    assert other(before, programs_here(checkout)) == restarted


def test_what_lies_beside_the_code_does_not_count(checkout: Path) -> None:
    before = programs_here(checkout)
    (checkout / "worker" / "__pycache__").mkdir()
    (checkout / "worker" / "__pycache__" / "app.cpython-311.pyc").write_bytes(b"compiled")
    assert programs_here(checkout) == before


def test_a_file_that_is_not_there_is_no_code(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        code_fingerprint(tmp_path, "nothing")
