"""`letterpress plan`, `deploy`'s question and `sweep`, as a user runs them, against an emulated Spheron."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.clouds import MachineSpec, Market
from infra.clouds.quota import Quota
from infra.clouds.spheron import LIMITS, SpheronCloud
from infra.emulate.server import Emulator, serving
from infra.emulate.spheron import KEY, SpheronApi
from infra.paths import repository_root
from tests.ports import free_ports

STACK = """\
name: hired
cloud: spheron
model: tiny
budget_per_hour: 5
router: {{edge: {{port: {}}}, admin: {{port: {}}}}}
pools:
  interactive: {{machines: 1, gpus: [H100-PCIe, H100-SXM], tier: fp8, first_port: {}}}
  batch: {{machines: 1, market: spot, first_port: {}}}
"""


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with serving(SpheronApi(stock=[replace(each, minimum_minutes=0) for each in SpheronApi().stock])) as emulator:
        yield emulator


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    file = tmp_path / "hired.yaml"
    file.write_text(STACK.format(*free_ports(4)))
    return file


def letterpress(emulator: Emulator, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ,
        "SPHERON_API_URL": emulator.url,
        "SPHERON_API_KEY": KEY,
        "LETTERPRESS_HOME": str(folder / "home"),
    }
    command = [sys.executable, "-c", "from infra.cli import main; main()", *arguments]
    return subprocess.run(
        command,
        env=environ,
        cwd=repository_root(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_plan_is_repeated_to_the_letter_from_the_offers_that_were_saved(
    emulator: Emulator, stack: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "offers.json"
    first = letterpress(emulator, tmp_path, "plan", str(stack), "--json", "--save-offers", str(kept))
    assert first.returncode == 0, first.stderr
    asked = len(emulator.asked)
    again = letterpress(emulator, tmp_path, "plan", str(stack), "--json", "--offers", str(kept))
    assert again.stdout == first.stdout
    assert len(emulator.asked) == asked, "nobody was asked"
    told = json.loads(again.stdout)
    interactive, batch = told["pools"]
    assert interactive["offers"][0]["gpu"] == "H100-PCIe"
    assert batch["offers"][0]["dollars_per_hour"] == 0.82
    assert [each["hosted"] for each in batch["break_even"]] == ["Turbo", "Default", "Quality"]
    assert told["published"][0]["said"] > told["published"][0]["bound"] > told["published"][0]["ours"]


def test_a_plan_for_people_shows_offers_their_refusals_and_the_hosted_prices(
    emulator: Emulator, stack: Path, tmp_path: Path
) -> None:
    told = letterpress(emulator, tmp_path, "plan", str(stack), "--images-per-month", "100000").stdout
    assert "100,000 images a month" in told
    assert "Quality (48 steps)" in told
    assert "the card's peak allows 29 a minute" in told
    assert "not in the pool's `gpus`" in told


def test_nothing_is_rented_where_nobody_can_say_yes(emulator: Emulator, stack: Path, tmp_path: Path) -> None:
    refused = letterpress(emulator, tmp_path, "deploy", str(stack))
    assert refused.returncode == 1
    assert "Together $2.83 an hour, of which $2.83 are new." in refused.stdout
    assert "nobody is here to be asked; say --yes" in refused.stderr
    assert emulator.account.rentals == {}


@pytest.mark.engine
def test_a_sweep_lists_what_no_state_knows_and_deletes_what_it_is_told(
    emulator: Emulator, stack: Path, tmp_path: Path
) -> None:
    refused = letterpress(emulator, tmp_path, "deploy", str(stack))  # draws the stack's id, and no more
    assert refused.returncode == 1
    stack_id = (tmp_path / "home" / "hired" / "stack-id").read_text().strip()
    strays = [f"lp-{stack_id}-batch-{number}-g1" for number in (1, 2)]
    _rent(emulator, tmp_path, [*strays, "lp-zzzzzzzz-batch-1-g1"])
    listed = letterpress(emulator, tmp_path, "sweep", str(stack))
    assert all(name in listed.stdout for name in strays), listed.stdout + listed.stderr
    assert "zzzzzzzz" not in listed.stdout, "another stack's"
    assert len(emulator.account.alive()) == 3
    swept = letterpress(emulator, tmp_path, "sweep", str(stack), "--delete", strays[0])
    assert f"{strays[0]}  (spheron, $0.82/h" in swept.stdout
    assert {rental.name for rental in emulator.account.alive()} == {strays[1], "lp-zzzzzzzz-batch-1-g1"}


def _rent(emulator: Emulator, folder: Path, names: list[str]) -> None:
    environ = {"SPHERON_API_URL": emulator.url, "SPHERON_API_KEY": KEY}
    cloud = SpheronCloud.of(environ, Quota(folder / "quota.json", LIMITS))

    async def rent() -> None:
        offer = next(each for each in await cloud.offers() if each.market is Market.SPOT and each.price == 0.82)
        for name in names:
            await cloud.create(MachineSpec(name, offer, public_key="ssh-ed25519 AAAA x"))

    asyncio.run(rent())
