"""`letterpress weights` with the hub's own client against an emulated hub: what a user types and sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulators.hub import TOKEN_OTHER, Hub, Repository
from tests.integration.worker.weights.rig import NAME, OPEN, YES, Shell, require_whole, snapshot


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
