"""`letterpress weights` with the hub's own client against an emulated hub: what a user types and sees."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.emulators.hub import TOKEN_ACCEPTED, TOKEN_OTHER, Hub, Repository, hub
from tests.waiting import eventually

NAME = "ideogram-ai/ideogram-4-nf4-diffusers"
OPEN = "somebody/open-weights"
LETTERPRESS = Path(sys.executable).parent / "letterpress"
SIZE = 3_000_000
YES = "--accept-license"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Files of a repository in diffusers' layout, with bytes that are nobody's weights."""
    folder = tmp_path / "on-the-hub"
    drawn = random.Random(4)
    index = {"_class_name": "Ideogram4Pipeline", "transformer": ["diffusers", "T"], "vae": ["diffusers", "V"]}
    shards = {f"layer.{n}": f"model-{n}.safetensors" for n in (1, 2)}
    contents = {
        "model_index.json": json.dumps(index).encode(),
        "README.md": b"read me",
        "assets/sample.png": b"a picture",
        "transformer/model.safetensors.index.json": json.dumps({"weight_map": shards}).encode(),
        "transformer/model-1.safetensors": drawn.randbytes(SIZE),
        "transformer/model-2.safetensors": drawn.randbytes(SIZE // 10),
        "vae/diffusion_pytorch_model.safetensors": drawn.randbytes(SIZE // 20),
    }
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Repository(folder)


@pytest.fixture
def served(repository: Repository) -> Iterator[Hub]:
    with hub({NAME: repository, OPEN: Repository(repository.folder, gated=False)}) as running:
        yield running


@dataclass
class Shell:
    """Types commands as a user with this environment."""

    environment: dict[str, str]
    said: str = ""

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [LETTERPRESS, "weights", *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit status and everything that was printed."""
        process = self.start(*arguments, **environment)
        said, _ = process.communicate(timeout=120)
        self.said += said
        return process.returncode, said


@pytest.fixture
def shell(served: Hub, tmp_path: Path) -> Iterator[Shell]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LETTERPRESS_"))}
    typed = Shell(
        kept
        | {
            "HF_ENDPOINT": served.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN_ACCEPTED,
            "LETTERPRESS_WORKER_CACHE_DIR": str(tmp_path / "worker"),
            "NO_PROXY": "*",
        }
    )
    yield typed
    written = "".join(
        path.read_text(errors="replace")
        for path in tmp_path.rglob("*")
        if path.is_file() and path.stat().st_size < 10_000
    )
    for token in (TOKEN_ACCEPTED, TOKEN_OTHER):
        assert token not in typed.said
        assert token not in written


def snapshot(cache: Path, repository: Repository) -> Path:
    return cache / f"models--{NAME.replace('/', '--')}" / "snapshots" / repository.commit


def require_whole(cache: Path, repository: Repository) -> None:
    """The snapshot holds what serves, byte by byte, and nothing else."""
    folder = snapshot(cache, repository)
    here = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    there = {name: path.read_bytes() for name, path in repository.files().items()}
    assert here == {name: data for name, data in there.items() if not name.endswith((".md", ".png"))}


def test_a_pull_brings_what_serves_and_nothing_else_and_a_second_one_nothing_at_all(
    shell: Shell, repository: Repository, tmp_path: Path
) -> None:
    status, said = shell.run("pull", NAME, YES)
    assert status == 0, said
    assert "Ideogram Non-Commercial Model Agreement, accepted by" in said
    assert f"{NAME} is whole: 0.00 GB, 0.00 GB fetched" in said
    assert str(snapshot(tmp_path / "cache", repository)) in said
    require_whole(tmp_path / "cache", repository)
    fetched = len(repository.sent())
    status, said = shell.run("pull", NAME)
    assert (status, len(repository.sent())) == (0, fetched)
    assert "everything was here" in said


def test_without_a_yes_nothing_is_fetched_and_the_licence_is_named_with_its_page(
    shell: Shell, served: Hub, repository: Repository
) -> None:
    status, said = shell.run("pull", NAME)
    assert status == 1
    assert "error:" in said
    for words in ("Ideogram Non-Commercial Model Agreement", f"{served.url}/{NAME}", YES, "accept_license: true"):
        assert words in said
    assert repository.sent() == []


def test_weights_that_nobody_gates_need_no_yes_and_none_is_written_down(shell: Shell, tmp_path: Path) -> None:
    status, said = shell.run("pull", OPEN, YES, HF_TOKEN="")
    assert (status, "is whole" in said) == (0, True), said
    assert not (tmp_path / "worker" / "licences").exists()


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "is gated and no token was given: accept its licence on"),
        (TOKEN_OTHER, "the account that HF_TOKEN belongs to may not download it"),
        ("hf_mistyped", "the hub does not take HF_TOKEN (401)"),
    ],
)
def test_a_refusal_says_which_of_its_reasons_it_has(
    shell: Shell, served: Hub, repository: Repository, token: str, words: str
) -> None:
    status, said = shell.run("pull", NAME, YES, HF_TOKEN=token)
    assert status == 1
    assert words in said
    assert f"{served.url}/{NAME}" in said
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in said
    assert "hf_mistyped" not in said
    assert repository.sent() == []


def test_a_name_that_the_hub_does_not_know_is_said(shell: Shell, served: Hub) -> None:
    status, said = shell.run("pull", "ideogram-ai/ideogram-5", YES)
    assert (status, f"check {served.url}/ideogram-ai/ideogram-5" in said) == (1, True), said
    status, said = shell.run("pull", "ideogram", YES)
    assert (status, "OWNER/NAME" in said) == (1, True), said


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


def test_a_worker_refuses_what_it_could_not_load_before_it_is_fetched(
    shell: Shell, served: Hub, repository: Repository, tmp_path: Path
) -> None:
    (repository.folder / "model_index.json").unlink()
    locating = (
        "import pathlib\n"
        "from worker.engine import LoadError\n"
        "from worker.weights import locate\n"
        "try:\n"
        f"    locate({OPEN!r}, pathlib.Path({str(tmp_path)!r}), lambda _: None)\n"
        "except LoadError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", locating], env=shell.environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert said.startswith(f"{OPEN} has no model_index.json")
    assert NAME in said
    assert served.repositories[OPEN].sent() == []


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


def test_a_busy_hub_is_waited_for_as_it_asks(shell: Shell, repository: Repository) -> None:
    repository.faults.limits.append(1)
    repository.faults.down = 1
    status, said = shell.run("pull", NAME, YES)
    assert status == 0, said
    assert "the hub answers 429; asking again in 1 s" in said
    assert "the hub answers 503" in said


def test_a_hub_that_asks_for_much_time_gets_it_by_the_next_try(shell: Shell, repository: Repository) -> None:
    repository.faults.busy.extend(["3600"] * 100)
    status, said = shell.run("pull", NAME, YES)
    assert status == 1
    assert "the hub asks for fewer requests (429). Wait 3600 s; run this again and it goes on where it stopped" in said


def test_a_hub_out_of_reach_is_said_with_its_address(shell: Shell) -> None:
    status, said = shell.run("pull", NAME, YES, HF_ENDPOINT="http://127.0.0.1:9")
    assert (status, "the hub is out of reach" in said) == (1, True), said
    assert f"http://127.0.0.1:9/{NAME}" in said


def test_offline_looks_at_what_is_here_and_asks_nobody(shell: Shell, repository: Repository) -> None:
    status, said = shell.run("pull", NAME, YES, HF_HUB_OFFLINE="1")
    assert (status, "HF_HUB_OFFLINE forbids" in said) == (1, True), said
    assert repository.asked == []
    shell.run("pull", NAME, YES)
    asked = len(repository.asked)
    status, said = shell.run("check", NAME, HF_HUB_OFFLINE="1")
    assert (status, "has its digest" in said) == (0, True), said
    assert len(repository.asked) == asked


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


def test_check_names_the_file_that_is_damaged_or_gone_and_a_pull_mends_it(
    shell: Shell, repository: Repository, tmp_path: Path
) -> None:
    status, said = shell.run("check", NAME)
    assert (status, f"`letterpress weights pull {NAME}`" in said) == (1, True), said
    shell.run("pull", NAME, YES)
    folder = snapshot(tmp_path / "cache", repository)
    damaged = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[5] ^= 1
    damaged.resolve().write_bytes(data)
    gone = folder / "transformer" / "model-2.safetensors"
    gone.resolve().unlink()
    gone.unlink()
    status, said = shell.run("check")
    assert status == 1
    assert "vae/diffusion_pytorch_model.safetensors is damaged" in said
    assert "transformer/model-2.safetensors is missing" in said
    assert f"`letterpress weights pull {NAME} --verify` mends it" in said
    status, said = shell.run("pull", NAME, "--verify")
    assert (status, "vae/diffusion_pytorch_model.safetensors is damaged; fetching it anew" in said) == (0, True), said
    require_whole(tmp_path / "cache", repository)


def test_list_shows_what_is_here_and_who_accepted_what(shell: Shell) -> None:
    shell.run("pull", NAME, YES)
    status, said = shell.run("list")
    line = next(line for line in said.splitlines() if line.startswith(NAME))
    assert (status, "whole" in line, " by " in line) == (0, True, True)
    assert next(line for line in said.splitlines() if line.startswith("fal/ideogram-v4-fast")).split()[1] == "no"
