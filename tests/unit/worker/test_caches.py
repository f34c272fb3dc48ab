"""Where kernels are kept: a folder of their own for each GPU, torch and engine, below whatever root."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from worker.engine import LoadError, NoRoomError, caches
from worker.engine.fast import _kernels
from worker.engine.kernels.plain import PlainKernels
from worker.engine.kernels.triton import TritonKernels

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


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "full"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def build() -> None:
    """Write a kernel where and as Triton writes one."""
    folder = Path(os.environ[caches.VARIABLE]) / "hash"
    folder.mkdir(exist_ok=True)
    (folder / "norm.cubin").write_bytes(bytes(100_000))


def test_a_disk_that_takes_no_kernel_is_named_and_the_next_one_is_kept_in_memory(full_disk: Path) -> None:
    kept = caches.use(caches.kernels(full_disk, CARD))
    said = f"{kept.folder}: .*No space left on device.*LETTERPRESS_WORKER_CACHE_DIR"
    with pytest.raises(NoRoomError, match=said), kept.writing():
        build()
    aside = Path(os.environ[caches.VARIABLE])
    try:
        with kept.writing():
            build()
        assert (aside / "hash" / "norm.cubin").stat().st_size == 100_000
    finally:
        shutil.rmtree(aside)


def test_a_folder_without_room_for_folders_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "kernels").touch()
    with pytest.raises(NoRoomError, match=os.strerror(errno.ENOTDIR)):
        caches.use(caches.kernels(tmp_path, CARD))


def test_a_compiler_that_fails_is_told_with_what_to_install(tmp_path: Path) -> None:
    kept = caches.use(caches.kernels(tmp_path, CARD))
    with pytest.raises(LoadError, match=r"cannot be built .*apt-get install gcc libc6-dev"), kept.writing():
        subprocess.check_call(["false"])


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are found; Python's headers lie in it, too."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    (folder / caches.HEADER).touch()
    return folder


def compiler(folder: Path, name: str) -> None:
    (folder / name).touch(mode=0o755)


def test_without_a_compiler_or_headers_no_kernel_can_be_built_and_what_to_install_is_said(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "C compiler and there is none: apt-get install gcc" in str(caches.why_not(programs))
    compiler(programs, "clang")
    assert caches.why_not(programs) is None
    monkeypatch.setenv("CC", "gcc-13")
    assert "CC=gcc-13 is not there" in str(caches.why_not(programs))
    compiler(programs, "gcc-13")
    assert caches.why_not(programs) is None
    assert f"{tmp_path}/Python.h is not there" in str(caches.why_not(tmp_path))


def test_where_no_kernel_can_be_built_the_plain_twins_serve() -> None:
    assert isinstance(_kernels(torch.bfloat16, triton=False), PlainKernels)
    assert isinstance(_kernels(torch.bfloat16, triton=True), TritonKernels)
