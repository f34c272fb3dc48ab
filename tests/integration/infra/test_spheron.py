"""Machines from Spheron: whatever its API does, exactly the described one is rented, and all are given back.

Against the emulator, over HTTP. What an order costs is read off the emulator's bill, not off what we believe.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from infra.clouds import CloudError, LimitedError, Machine, Market, NoStockError, Offer, Phase, Presence
from infra.clouds.quota import Limit, Quota
from infra.clouds.spheron import LIMITS, SpheronCloud
from infra.clouds.wire import CREATES, REQUESTS, TRIES
from infra.costs.gpus import GpuModel
from infra.emulate.account import Account
from infra.emulate.server import Answer, Emulator, Fault, Request, Trouble, serving
from infra.emulate.spheron import KEY, SpheronApi, Stock
from infra.errors import InfraError
from infra.provider.machine import MachineInputs, MachineResource, MachineState
from infra.provider.prices import FRESH_S, Prices
from infra.provider.resource import Condition, ProviderError
from infra.stack import CloudName
from tests.pairs import pairwise

NAME = "lp-abcdefgh-batch-1-g1"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtleQ letterpress"
HOUR = 3600.0
T = TypeVar("T")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    api = SpheronApi(stock=[replace(each, minimum_minutes=0) for each in SpheronApi().stock])
    with serving(api) as emulator:
        yield emulator


def spheron(emulator: Emulator, folder: Path, limits: dict[str, Limit] | None = None) -> SpheronCloud:
    environ = {"SPHERON_API_KEY": KEY, "SPHERON_API_URL": emulator.url}
    quota = Quota(folder / "spheron.json", limits or LIMITS)
    cloud = SpheronCloud.of(environ, quota)
    return replace(cloud, wire=replace(cloud.wire, answer_s=2.0, pause_s=0.01), fresh_s=0.0)


def offer(cloud: SpheronCloud, gpu: GpuModel = GpuModel.A100_SXM_80, market: Market = Market.SPOT) -> Offer:
    return next(each for each in asyncio.run(cloud.offers()) if each.gpu == gpu and each.market is market)


def resource(cloud: SpheronCloud) -> MachineResource:
    return MachineResource(lambda _: cloud, lambda: PUBLIC_KEY, look_pause_s=0.0)


def inputs(cloud: SpheronCloud, name: str = NAME) -> MachineInputs:
    return MachineInputs(name=name, cloud=CloudName.SPHERON, offer=offer(cloud))


def test_offers_come_from_every_page_with_both_markets_and_every_region(emulator: Emulator, tmp_path: Path) -> None:
    offers = asyncio.run(spheron(emulator, tmp_path).offers())
    assert {each.gpu for each in offers} == {
        GpuModel.H100_SXM,
        GpuModel.H100_PCIE,
        GpuModel.A100_SXM_80,
        GpuModel.A100_PCIE_80,
        GpuModel.A100_SXM_40,
    }
    spot = [each for each in offers if each.market is Market.SPOT]
    assert {(each.gpu, each.price) for each in spot} == {
        (GpuModel.H100_SXM, 2.91),
        (GpuModel.A100_SXM_80, 0.82),
        (GpuModel.A100_PCIE_80, 1.19),
    }
    assert {each.region for each in offers} == {"us-central", "eu-north"}
    assert len({each.id for each in offers}) == len(offers)


def test_an_order_names_fields_of_one_offer_and_a_key_that_is_added_beside_those_of_others(
    emulator: Emulator, tmp_path: Path
) -> None:
    api = emulator.api
    assert isinstance(api, SpheronApi)
    api.keys["theirs"] = {"id": "theirs", "name": "laptop", "publicKey": "ssh-rsa AAAA me@laptop"}
    cloud = spheron(emulator, tmp_path)
    names = [f"lp-abcdefgh-batch-{number}-g1" for number in range(1, 5)]

    async def together() -> list[MachineState]:
        wanted = MachineInputs(name="", cloud=CloudName.SPHERON, offer=chosen)
        make = resource(cloud).ensure
        return await asyncio.gather(*(make(wanted.model_copy(update={"name": n}), None, print) for n in names))

    chosen = offer(cloud)
    states = asyncio.run(together())
    assert len({state.machine_id for state in states}) == 4
    assert [key["name"] for key in api.keys.values()] == ["laptop", "lp-abcdefgh"]
    assert {rental.rate for rental in emulator.account.alive()} == {0.82}


def test_machines_of_another_stack_are_never_seen(emulator: Emulator, tmp_path: Path) -> None:
    """Two people, one account, the same name of a stack: their ids differ."""
    mine, theirs = (spheron(emulator, tmp_path / who) for who in ("me", "them"))
    asyncio.run(resource(mine).ensure(inputs(mine), None, print))
    asyncio.run(resource(theirs).ensure(inputs(theirs, NAME.replace("abcdefgh", "zyxwvuts")), None, print))
    assert [machine.name for machine in asyncio.run(mine.list("abcdefgh"))] == [NAME]
    assert asyncio.run(theirs.find(NAME.replace("batch", "interactive"))) is None
    assert len(emulator.account.alive()) == 2


CREATE_STEPS = ("listDeployments", "listOffers", "listKeys", "addKey", "balance", "createDeployment")
DELETE_STEPS = ("listDeployments", "deleteDeployment")
WHEREVER = (Trouble.LIMITED, Trouble.BROKEN, Trouble.BROKEN_AFTER, Trouble.LOST_REQUEST, Trouble.LOST_ANSWER)


@pytest.mark.parametrize(("trouble", "step"), list(itertools.product(WHEREVER, CREATE_STEPS)))
def test_whatever_goes_wrong_once_in_a_create_one_machine_is_rented_and_one_is_billed(
    emulator: Emulator, tmp_path: Path, trouble: Trouble, step: str
) -> None:
    cloud = spheron(emulator, tmp_path)
    wanted = inputs(cloud)
    emulator.faults.append(Fault(trouble, step, seconds=0.05))
    if step == "createDeployment" and trouble in (Trouble.BROKEN, Trouble.LOST_REQUEST):
        # An order that may have been carried out is not repeated by itself, but by the next command.
        with pytest.raises(ProviderError, match="run the same command again"):
            asyncio.run(resource(cloud).ensure(wanted, None, print))
        assert emulator.asked.count("createDeployment") == 1
    state = asyncio.run(resource(cloud).ensure(wanted, None, print))
    assert [rental.name for rental in emulator.account.rentals.values()] == [NAME]
    assert state.condition is Condition.RUNNING
    assert emulator.faults[0].times == 0, "the fault never happened"


@pytest.mark.parametrize(
    ("trouble", "step"), list(itertools.product(WHEREVER, ("listDeployments", "deleteDeployment")))
)
def test_whatever_goes_wrong_once_in_a_delete_the_account_is_empty_after_it(
    emulator: Emulator, tmp_path: Path, trouble: Trouble, step: str
) -> None:
    cloud = spheron(emulator, tmp_path)
    state = asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
    emulator.faults.append(Fault(trouble, step, seconds=0.05))
    asyncio.run(resource(cloud).delete(state, print))
    assert emulator.account.alive() == []


LIFE = ("listOffers", "listKeys", "addKey", "balance", "createDeployment", "listDeployments", "deleteDeployment")


@pytest.mark.parametrize("faults", pairwise({step: [None, *WHEREVER] for step in LIFE}))
def test_whatever_two_things_go_wrong_in_a_machines_life_it_is_rented_once_and_given_back(
    emulator: Emulator, tmp_path: Path, faults: dict[str, Trouble | None]
) -> None:
    """Every trouble at every step beside every other at every other; the same command is given again when it fails."""
    cloud = spheron(emulator, tmp_path)
    emulator.faults += [Fault(trouble, step, seconds=0.02) for step, trouble in faults.items() if trouble]

    def again(command: Callable[[], T]) -> T:
        for _ in range(3):
            with suppress(InfraError):
                return command()
        return command()

    wanted = again(lambda: inputs(cloud))
    state = again(lambda: asyncio.run(resource(cloud).ensure(wanted, None, print)))
    seen = asyncio.run(resource(cloud).read(state))
    assert seen is not None
    assert seen.condition is Condition.RUNNING
    again(lambda: asyncio.run(resource(cloud).delete(state, print)))
    assert [rental.name for rental in emulator.account.rentals.values()] == [NAME]
    assert emulator.account.alive() == []
    assert [fault for fault in emulator.faults if fault.times] == [], "all of it did go wrong"


def test_what_costs_more_by_now_than_was_agreed_to_is_not_rented(emulator: Emulator, tmp_path: Path) -> None:
    api = emulator.api
    assert isinstance(api, SpheronApi)
    cloud = spheron(emulator, tmp_path)
    wanted = inputs(cloud)
    dearer(api)
    with pytest.raises(ProviderError, match=r"costs \$1\.64 an hour by now, and was offered for \$0\.82"):
        asyncio.run(resource(cloud).ensure(wanted, None, print))
    assert emulator.account.rentals == {}
    assert asyncio.run(resource(cloud).ensure(inputs(cloud), None, print)).offer.price == 1.64, "by its new price"


def questions_of_price(emulator: Emulator) -> int:
    """Pages of one answer are one question."""
    return sum(op == "listOffers" and request.query["page"] == "1" for request, op, _ in emulator.log)


async def rented(by: MachineResource, wanted: MachineInputs, numbers: range) -> list[MachineState | BaseException]:
    names = [f"lp-abcdefgh-batch-{number}-g1" for number in numbers]
    each = (by.ensure(wanted.model_copy(update={"name": name}), None, print) for name in names)
    return await asyncio.gather(*each, return_exceptions=True)


def test_machines_that_are_rented_side_by_side_ask_once_what_they_cost_and_later_ones_again(
    emulator: Emulator, tmp_path: Path
) -> None:
    cloud, now = spheron(emulator, tmp_path), [0.0]
    by, wanted = replace(resource(cloud), prices=Prices(lambda: now[0])), inputs(cloud)
    before = questions_of_price(emulator)

    async def six_and_then_two() -> list[MachineState | BaseException]:
        await rented(by, wanted, range(1, 7))
        assert len(emulator.account.alive()) == 6
        assert questions_of_price(emulator) - before == 1
        now[0] = FRESH_S
        assert isinstance(emulator.api, SpheronApi)
        dearer(emulator.api)
        return await rented(by, wanted, range(7, 9))

    late, later = asyncio.run(six_and_then_two())
    assert questions_of_price(emulator) - before == 2
    for refusal in (late, later):
        assert isinstance(refusal, ProviderError)
        assert "costs $1.64 an hour by now" in str(refusal)
    assert len(emulator.account.alive()) == 6


def test_a_question_of_price_that_stays_unanswered_is_not_asked_by_each_machine_anew(
    emulator: Emulator, tmp_path: Path
) -> None:
    cloud = spheron(emulator, tmp_path)
    by, wanted = resource(cloud), inputs(cloud)
    emulator.faults.append(Fault(Trouble.BROKEN, "listOffers", times=TRIES))
    before = emulator.asked.count("listOffers")

    async def twice() -> None:
        refusals = await rented(by, wanted, range(1, 7))
        assert all("does not answer GET /api/gpu-offers" in str(each) for each in refusals)
        assert emulator.asked.count("listOffers") - before == TRIES
        assert emulator.account.rentals == {}
        await rented(by, wanted, range(1, 7))

    asyncio.run(twice())
    assert len(emulator.account.alive()) == 6, "the same command again"


def dearer(api: SpheronApi) -> None:
    for each in api.stock:
        each.spot_price = each.spot_price and 2 * each.spot_price


class Hasty(SpheronApi):
    """Its prices move just as an order comes in."""

    def answer(self, request: Request, operation: str, /) -> Answer:
        if operation == "createDeployment":
            dearer(self)
        return SpheronApi.answer(self, request, operation)


def test_a_price_that_moved_with_the_order_itself_is_said(tmp_path: Path) -> None:
    with serving(Hasty()) as emulator:
        cloud = spheron(emulator, tmp_path)
        said: list[str] = []
        asyncio.run(resource(cloud).ensure(inputs(cloud), None, said.append))
        assert "it costs $1.64 an hour, and was offered for $0.82" in said
        said.clear()
        asyncio.run(resource(cloud).ensure(inputs(cloud), None, said.append))
        assert not [line for line in said if "costs" in line], "once, when it is rented"


def test_a_provider_that_does_not_answer_leaves_what_is_known_of_a_machine(emulator: Emulator, tmp_path: Path) -> None:
    cloud = spheron(emulator, tmp_path)
    state = asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
    emulator.faults.append(Fault(Trouble.BROKEN, times=99))
    seen = asyncio.run(resource(cloud).read(state))
    assert seen is not None
    assert seen.condition is Condition.UNKNOWN
    assert seen.machine_id == state.machine_id


def test_a_machine_that_was_taken_back_is_gone_and_is_said_to_be(emulator: Emulator, tmp_path: Path) -> None:
    cloud = spheron(emulator, tmp_path)
    state = asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
    assert emulator.account.take_back() == [NAME]
    observed = asyncio.run(cloud.look(state.machine_id))
    assert (observed.presence, observed.taken_back) == (Presence.GONE, True)
    assert asyncio.run(resource(cloud).read(state)) is None


def test_phantom_stock_is_a_refusal_and_is_not_offered_for_a_quarter_of_an_hour(tmp_path: Path) -> None:
    now = [1_000_000.0]
    with serving(
        SpheronApi(stock=[Stock("p", "A100_SXM4", "A100", "A100 SXM4 80GB", "SXM4", 80, 1.69, 0.82, phantom=True)])
    ) as emulator:
        cloud = spheron(emulator, tmp_path)
        cloud = replace(cloud, wire=replace(cloud.wire, quota=replace(cloud.wire.quota, clock=lambda: now[0])))
        wanted = inputs(cloud)
        with pytest.raises(NoStockError, match="left aside for 15 minutes"):
            asyncio.run(resource(cloud).ensure(wanted, None, print))
        left = asyncio.run(cloud.offers())
        assert wanted.offer.id not in {each.id for each in left}
        assert left, "other regions and the other market are still offered"
        now[0] += 901
        assert wanted.offer.id in {each.id for each in asyncio.run(cloud.offers())}
        assert emulator.account.rentals == {}


class Deaf(SpheronApi):
    """Says yes to every delete, and does nothing."""

    def answer(self, request: Request, operation: str, /) -> Answer:
        if operation == "deleteDeployment":
            return Answer(200, {"message": "Deployment terminated"})
        return super().answer(request, operation)


def test_a_machine_that_its_cloud_keeps_in_spite_of_its_yes_is_told_and_not_waited_for_for_ever(tmp_path: Path) -> None:
    with serving(Deaf()) as emulator:
        cloud = spheron(emulator, tmp_path)
        state = asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
        with pytest.raises(ProviderError, match=r"lists it still\. It may be paid for"):
            asyncio.run(resource(cloud).delete(state, print))


def test_a_minimum_run_time_is_waited_out_or_told_with_its_cost(tmp_path: Path) -> None:
    now = [0.0]
    account = Account(clock=lambda: time.time() + now[0])
    with serving(SpheronApi(account)) as emulator:
        cloud = spheron(emulator, tmp_path)
        state = asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
        now[0] = 20 * 60 - 1.5
        with pytest.raises(ProviderError, match=r"Until then it costs \$0\.\d\d more; destroy again after"):
            asyncio.run(replace(resource(cloud), waits=False).delete(state, print))
        assert account.alive()
        said: list[str] = []
        asyncio.run(resource(cloud).delete(state, said.append))
        assert account.alive() == []
        assert any("which costs $0.00" in each for each in said)
        seconds, dollars = account.bill()[NAME]
        assert dollars == pytest.approx(seconds * 0.82 / HOUR)


def test_orders_beyond_the_limit_wait_and_say_so_and_processes_share_the_count(
    emulator: Emulator, tmp_path: Path
) -> None:
    limits = {CREATES: Limit(2, 3.0), REQUESTS: Limit(1000, 900.0)}
    one, other = spheron(emulator, tmp_path, limits), spheron(emulator, tmp_path, limits)
    assert one.wire.quota == other.wire.quota
    said: list[str] = []
    for number, cloud in enumerate((one, other, one), start=1):
        wanted = inputs(cloud, f"lp-abcdefgh-batch-{number}-g1")
        asyncio.run(resource(cloud).ensure(wanted, None, said.append))
    assert len(emulator.account.alive()) == 3
    assert emulator.asked.count("createDeployment") == 3, "nothing is sent that would be refused"
    assert any("takes no more orders for now; going on in" in each for each in said)


def test_a_wrong_key_and_an_unreachable_provider_are_said_as_what_they_are(emulator: Emulator, tmp_path: Path) -> None:
    quota = Quota(tmp_path / "q.json", LIMITS)
    wrong = SpheronCloud.of({"SPHERON_API_KEY": "another", "SPHERON_API_URL": emulator.url}, quota)
    with pytest.raises(CloudError, match="Spheron does not take SPHERON_API_KEY"):
        asyncio.run(wrong.find(NAME))
    with pytest.raises(CloudError, match="SPHERON_API_KEY is not set"):
        asyncio.run(SpheronCloud.of({"SPHERON_API_URL": emulator.url}, quota).find(NAME))
    assert "another" not in str(wrong.wire.key)


@pytest.mark.parametrize("bare", [True, False])
def test_an_address_may_come_before_the_machine_does_and_lists_in_either_form(tmp_path: Path, bare: bool) -> None:
    now = [0.0]
    account = Account(clock=lambda: now[0], boot_s=600, address_s=30)
    stages: list[tuple[bool, Phase]] = []
    with serving(SpheronApi(account, bare_lists=bare)) as emulator:
        cloud = spheron(emulator, tmp_path)
        for number in range(1, 8):  # more than a page
            asyncio.run(resource(cloud).ensure(inputs(cloud, f"lp-abcdefgh-batch-{number}-g1"), None, print))
        for at in (0.0, 60.0, 700.0):
            now[0] = at
            machine = asyncio.run(cloud.find("lp-abcdefgh-batch-7-g1"))
            assert machine is not None
            stages.append((bool(machine.address), machine.phase))
    assert stages == [(False, Phase.BOOTING), (True, Phase.BOOTING), (True, Phase.RUNNING)]


def test_ten_that_look_at_once_ask_once(emulator: Emulator, tmp_path: Path) -> None:
    cloud = replace(spheron(emulator, tmp_path), fresh_s=10.0)

    async def together() -> list[Machine | None]:
        return await asyncio.gather(*(cloud.find(f"lp-abcdefgh-batch-{number}-g1") for number in range(10)))

    assert asyncio.run(together()) == [None] * 10
    assert emulator.asked == ["listDeployments"]


def test_a_quota_is_never_exceeded_by_threads_that_ask_at_once(tmp_path: Path) -> None:
    quota = Quota(tmp_path / "q.json", {REQUESTS: Limit(25, 900.0)})
    barrier = threading.Barrier(8)

    def ask(_: int) -> int:
        barrier.wait(10)
        return sum(asyncio.run(quota.take(REQUESTS)) == 0 for _ in range(6))

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(ask, range(8))) == 25


def test_a_question_that_would_wait_too_long_is_refused_with_the_seconds(emulator: Emulator, tmp_path: Path) -> None:
    cloud = spheron(emulator, tmp_path, {REQUESTS: Limit(2, 900.0)})
    asyncio.run(cloud.offers())  # two pages
    with pytest.raises(LimitedError, match="takes no more requests for") as refusal:
        asyncio.run(cloud.find(NAME))
    assert 800 < refusal.value.wait_s <= 900


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("failed", Phase.STOPPED),
        ("stopped", Phase.STOPPED),
        ("terminating", Phase.BOOTING),
        ("new-word", Phase.BOOTING),
    ],
)
def test_whatever_is_not_terminated_is_there_and_can_be_given_back(
    emulator: Emulator, tmp_path: Path, status: str, phase: Phase
) -> None:
    cloud = spheron(emulator, tmp_path)
    state = asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
    api = emulator.api
    assert isinstance(api, SpheronApi)
    api.statuses[state.machine_id] = status
    assert [machine.phase for machine in asyncio.run(cloud.list("abcdefgh"))] == [phase]
    observed = asyncio.run(cloud.look(state.machine_id))
    assert (observed.presence, observed.machine and observed.machine.phase) == (Presence.THERE, phase)
    asyncio.run(resource(cloud).delete(state, print))
    assert emulator.account.alive() == []
