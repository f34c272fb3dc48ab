"""Downloads that break, are killed, stopped, damaged or run out of disk: nothing seems whole that is not, and the next
pull goes on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.emulators.hub import Hub, Repository
from tests.integration.worker.weights.rig import NAME, OPEN, YES, Shell, require_whole, snapshot
from tests.waiting import eventually


def test_a_cut_connection_is_taken_up_where_it_broke(shell: Shell, repository: Repository, tmp_path: Path) -> None:
    repository.faults.cuts = 2
    status, said = shell.run("pull", NAME, YES)
    assert status == 0, said
    assert "going on in" in said
    assert sum(ranged != "" for _, ranged in repository.sent()) == 2
    require_whole(tmp_path / "cache", repository)


def test_a_connection_that_never_brings_anything_is_given_up_with_a_way_on(shell: Shell, served: Hub) -> None:
    faults = served.repositories[OPEN].faults
    faults.cuts, faults.cut_at = 10_000, 0.0
    impatient = (
        "import pathlib, sys\n"
        "from worker.weights.hub import WeightsError\n"
        "from worker.weights.pull import pull\n"
        "class Quiet:\n"
        "    accepted = begins = advanced = waits = lambda *_: None\n"
        "try:\n"
        f"    pull({OPEN!r}, pathlib.Path(), Quiet(), pause=lambda _: None)\n"
        "except WeightsError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", impatient], env=shell.environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert said.startswith(f"{OPEN} cannot be fetched: the hub is out of reach")
    assert f"Check the network and {served.url}/{OPEN}; run this again and it goes on where it stopped" in said


def test_a_server_that_ignores_ranges_costs_time_and_no_bytes(
    shell: Shell, repository: Repository, tmp_path: Path
) -> None:
    repository.faults.cuts, repository.faults.ignores_ranges = 2, True
    assert shell.run("pull", NAME, YES)[0] == 0
    require_whole(tmp_path / "cache", repository)


def test_a_killed_pull_is_taken_up_by_the_next_one(shell: Shell, repository: Repository, tmp_path: Path) -> None:
    repository.faults.hold = threading.Event()
    first = shell.start("pull", NAME, YES)
    eventually(lambda: len(repository.sent()) == 3, 60, "all three large files are on their way")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    repository.faults.hold.set()
    repository.faults.hold = None
    before = len(repository.sent())
    status, said = shell.run("pull", NAME)
    assert status == 0, said
    assert all(ranged for _, ranged in repository.sent()[before:]), repository.sent()
    require_whole(tmp_path / "cache", repository)


def interrupt(process: subprocess.Popen[str], repository: Repository) -> None:
    """Ctrl-C while every download that goes on is held in its middle; then its connections break."""
    repository.faults.cuts = 10_000
    process.send_signal(signal.SIGINT)
    assert repository.faults.hold
    repository.faults.hold.set()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    repository.faults.cuts, repository.faults.hold = 0, None


def test_an_interrupted_pull_keeps_its_parts_as_parts_and_the_next_one_goes_on(
    shell: Shell, repository: Repository, tmp_path: Path
) -> None:
    repository.faults.hold = threading.Event()
    first = shell.start("pull", NAME, YES)

    def held() -> bool:
        begun = [part for part in (tmp_path / "cache").rglob("*.partial") if part.stat().st_size]
        return len(repository.sent()) == len(begun) == 3

    eventually(held, 60, "of all three large files a part is here")
    interrupt(first, repository)
    before = len(repository.sent())
    status, said = shell.run("pull", NAME)
    assert status == 0, said
    assert len(repository.sent()) == before + 3
    assert all(ranged for _, ranged in repository.sent()[before:]), repository.sent()
    require_whole(tmp_path / "cache", repository)


def test_a_repair_that_is_interrupted_leaves_no_file_that_seems_whole(
    shell: Shell, repository: Repository, tmp_path: Path
) -> None:
    shell.run("pull", NAME, YES)
    damaged = (snapshot(tmp_path / "cache", repository) / "vae" / "diffusion_pytorch_model.safetensors").resolve()
    damaged.write_bytes(bytes(damaged.stat().st_size))
    repository.faults.hold = threading.Event()
    before = len(repository.sent())
    repairing = shell.start("pull", NAME, "--verify")
    eventually(lambda: len(repository.sent()) > before, 60, "the damaged file is on its way")
    interrupt(repairing, repository)
    status, said = shell.run("check", NAME, "--quick")
    assert (status, "vae/diffusion_pytorch_model.safetensors is missing" in said) == (1, True), said


def test_two_pulls_at_once_download_once(shell: Shell, repository: Repository) -> None:
    repository.faults.hold = threading.Event()
    first = shell.start("pull", NAME, YES)
    eventually(lambda: len(repository.sent()) == 3, 60, "all three large files are on their way")
    second = shell.start("pull", NAME, YES)
    assert second.stdout
    line = ""
    while "waiting for it" not in line:
        line = second.stdout.readline()
        assert line, "the second one ended without waiting"
    repository.faults.hold.set()
    said = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    assert "everything was here" in said[1]
    assert len(repository.sent()) == 3


def test_a_damaged_file_is_fetched_anew_and_never_kept(shell: Shell, repository: Repository, tmp_path: Path) -> None:
    repository.faults.damaged = 1
    status, said = shell.run("pull", NAME, YES)
    assert (status, "arrived damaged; fetching it anew" in said) == (0, True), said
    shutil.rmtree(tmp_path / "cache")
    repository.faults.damaged = 100
    status, said = shell.run("pull", NAME)
    assert (status, "arrived damaged twice" in said) == (1, True), said
    assert not snapshot(tmp_path / "cache", repository).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes for the cache."""
    folder = tmp_path / "small-disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"this user may not mount a disk: {mounted.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    shell: Shell, repository: Repository, small_disk: Callable[[int], Path]
) -> None:
    folder = small_disk(2**20)
    status, said = shell.run("pull", NAME, YES, HF_HUB_CACHE=str(folder))
    assert status == 1
    assert f"{NAME} needs 0.0 GB more on {folder}" in said
    assert "HF_HUB_CACHE" in said
    assert repository.sent() == []


def test_a_disk_that_fills_up_meanwhile_keeps_what_came_and_the_next_pull_goes_on(
    shell: Shell, repository: Repository, small_disk: Callable[[int], Path]
) -> None:
    folder = small_disk(300 * 2**20)
    repository.faults.hold = threading.Event()
    pulling = shell.start("pull", NAME, YES, HF_HUB_CACHE=str(folder))
    eventually(lambda: len(repository.sent()) == 3, 60, "all three large files are on their way")
    hog = folder / "somebody-elses"
    with (
        pytest.raises(OSError, match="No space left"),
        hog.open("wb", buffering=0) as filling,
        Path("/dev/zero").open("rb") as zeros,
    ):
        shutil.copyfileobj(zeros, filling, 4096)
    repository.faults.hold.set()
    repository.faults.hold = None
    said, _ = pulling.communicate(timeout=60)
    assert pulling.returncode == 1
    assert f"the disk of {folder} is full" in said
    assert "goes on where it stopped" in said
    hog.unlink()
    before = len(repository.sent())
    status, again = shell.run("pull", NAME, HF_HUB_CACHE=str(folder))
    assert status == 0, again
    assert any(ranged for _, ranged in repository.sent()[before:])
