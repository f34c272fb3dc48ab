"""`letterpress plan`, `deploy`'s question and `sweep`, as a user runs them, against an emulated Spheron."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.clouds import MachineSpec, Market
from infra.clouds.quota import Quota
from infra.clouds.spheron import LIMITS, SpheronCloud
from infra.emulate.server import serving
from infra.emulate.spheron import SpheronApi
from tests.integration.infra.hired import Person


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    with serving(SpheronApi(stock=[replace(each, minimum_minutes=0) for each in SpheronApi().stock])) as emulator:
        made = Person(tmp_path, emulator)
        made.describes("machines: 1, gpus: [H100-PCIe, H100-SXM], tier: fp8", "machines: 1, market: spot")
        yield made


def test_a_plan_is_repeated_to_the_letter_from_the_offers_that_were_saved(person: Person) -> None:
    kept = person.folder / "offers.json"
    first = person.letterpress("plan", "--json", "--save-offers", str(kept))
    assert first.returncode == 0, first.stderr
    asked = len(person.emulator.asked)
    again = person.letterpress("plan", "--json", "--offers", str(kept))
    assert again.stdout == first.stdout
    assert len(person.emulator.asked) == asked, "nobody was asked"
    told = json.loads(again.stdout)
    interactive, batch = told["pools"]
    assert interactive["offers"][0]["gpu"] == "H100-PCIe"
    assert batch["offers"][0]["dollars_per_hour"] == 0.82
    assert [each["hosted"] for each in batch["break_even"]] == ["Turbo", "Default", "Quality"]
    assert told["published"][0]["said"] > told["published"][0]["bound"] > told["published"][0]["ours"]


def test_a_plan_for_people_shows_offers_their_refusals_and_the_hosted_prices(person: Person) -> None:
    told = person.letterpress("plan", "--images-per-month", "100000").stdout
    assert "100,000 images a month" in told
    assert "Quality (48 steps)" in told
    assert "the card's peak allows 29 a minute" in told
    assert "not in the pool's `gpus`" in told


def test_nothing_is_rented_where_nobody_can_say_yes(person: Person) -> None:
    refused = person.letterpress("deploy")
    assert refused.returncode == 1
    assert "Together $2.83 an hour, of which $2.83 are new." in refused.stdout
    assert "nobody is here to be asked; say --yes" in refused.stderr
    assert person.emulator.account.rentals == {}


@pytest.mark.engine
def test_a_sweep_lists_what_no_state_knows_and_deletes_what_it_is_told(person: Person) -> None:
    refused = person.letterpress("deploy")  # draws the stack's id, and no more
    assert refused.returncode == 1
    strays = [f"lp-{person.stack_id}-batch-{number}-g1" for number in (1, 2)]
    _rent(person, [*strays, "lp-zzzzzzzz-batch-1-g1"])
    listed = person.letterpress("sweep")
    assert all(name in listed.stdout for name in strays), listed.stdout + listed.stderr
    assert "zzzzzzzz" not in listed.stdout, "another stack's"
    assert len(person.emulator.account.alive()) == 3
    swept = person.letterpress("sweep", "--delete", strays[0])
    assert f"{strays[0]}  (spheron, $0.82/h" in swept.stdout
    assert {rental.name for rental in person.emulator.account.alive()} == {strays[1], "lp-zzzzzzzz-batch-1-g1"}


def _rent(person: Person, names: list[str]) -> None:
    cloud = SpheronCloud.of(person.environment, Quota(person.folder / "quota.json", LIMITS))

    async def rent() -> None:
        offer = next(each for each in await cloud.offers() if each.market is Market.SPOT and each.price == 0.82)
        for name in names:
            await cloud.create(MachineSpec(name, offer, public_key="ssh-ed25519 AAAA x"))

    asyncio.run(rent())
