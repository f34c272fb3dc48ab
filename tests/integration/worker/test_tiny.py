"""How the tiny repository comes to be on disk. (What it draws: `test_reference_engine`.)"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from worker import tiny

# The same layout with even less in it: what is tried here is not what it draws.
SMALL = replace(tiny.DEFAULT, feed_forward=8)


def test_processes_that_ask_at_once_get_one_whole_repository(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from dataclasses import replace; from worker import tiny; "
        f"print(tiny.ensure(Path({str(tmp_path)!r}), replace(tiny.DEFAULT, feed_forward=8)))"
    )

    def ask(_: int) -> str:
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    with ThreadPoolExecutor(2) as pool:
        answers = set(pool.map(ask, range(2)))
    assert answers == {str(tiny.path(tmp_path, SMALL))}
    assert sorted(path.name for path in tmp_path.iterdir()) == [tiny.path(tmp_path, SMALL).name, "tiny.lock"]


def test_what_is_there_is_not_built_again_and_another_recipe_is(tmp_path: Path) -> None:
    first = tiny.ensure(tmp_path, SMALL)
    made = (first / "model_index.json").stat().st_mtime_ns
    assert tiny.ensure(tmp_path, SMALL) == first
    assert (first / "model_index.json").stat().st_mtime_ns == made
    assert tiny.ensure(tmp_path, replace(SMALL, version=SMALL.version + 1)) != first


def test_the_same_recipe_gives_the_same_weights(tmp_path: Path) -> None:
    folders = [tiny.ensure(tmp_path / name, SMALL) for name in ("a", "b")]
    for part in ("transformer", "unconditional_transformer", "vae", "text_encoder", "tokenizer"):
        ours, theirs = (sorted(path for path in (folder / part).rglob("*") if path.is_file()) for folder in folders)
        assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


def test_the_two_transformers_differ(tiny_repository: Path) -> None:
    name = "diffusion_pytorch_model.safetensors"
    weights = [(tiny_repository / part / name).read_bytes() for part in ("transformer", "unconditional_transformer")]
    assert weights[0] != weights[1]


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="tiny tokenizer"):
        tiny.ensure(tmp_path, replace(SMALL, vocabulary=200))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.lock"]
