"""Where kernels are kept: a folder of their own for each GPU, torch and engine, below whatever root."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import pytest

from worker.engine import LoadError, caches

CARD = "NVIDIA H100 80GB HBM3"
KEY = f"NVIDIA-H100-80GB-HBM3_torch-{version('torch')}_triton-{version('triton')}_{version('letterpress')}"


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(caches.VARIABLE, "")  # so that what `use` sets is undone
    monkeypatch.delenv(caches.VARIABLE)


def test_kernels_lie_in_a_folder_of_their_card_and_versions_below_the_workers_cache(tmp_path: Path) -> None:
    kept = caches.use(caches.kernels(tmp_path, CARD))
    assert kept.folder == tmp_path / "kernels" / KEY
    assert os.environ[caches.VARIABLE] == str(kept.folder)


def test_a_root_of_the_operators_own_holds_such_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(caches.VARIABLE, str(tmp_path / "own"))
    assert caches.use(caches.kernels(tmp_path, CARD)).folder == tmp_path / "own" / KEY
    assert os.environ[caches.VARIABLE] == str(tmp_path / "own" / KEY)


def test_a_second_engine_of_one_process_finds_the_firsts_kernels(tmp_path: Path) -> None:
    first = caches.use(caches.kernels(tmp_path, CARD))
    (first.folder / "hash").mkdir()
    (first.folder / "hash" / "norm.cubin").touch()
    assert first.built == 1
    second = caches.use(caches.kernels(tmp_path, CARD))
    assert (second.folder, second.before, second.built) == (first.folder, 1, 0)


def test_another_card_in_the_same_cache_has_another_folder(tmp_path: Path) -> None:
    assert caches.kernels(tmp_path, CARD) != caches.kernels(tmp_path, "NVIDIA A100-SXM4-80GB")


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "kernels").touch()
    with pytest.raises(LoadError, match=f"{tmp_path}/kernels/.*cannot be kept there"):
        caches.use(caches.kernels(tmp_path, CARD))
