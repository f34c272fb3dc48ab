"""RunPod's pods and endpoints: both sides of every exchange are as RunPod's own description says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.clouds import CloudError, Market, NoStockError, Phase, Presence
from infra.clouds.quota import Quota
from infra.clouds.runpod import LIMITS, RunpodCloud
from infra.clouds.runpod_serverless import EndpointSpec, Serverless
from infra.costs.gpus import GpuModel
from infra.emulate.account import Account
from infra.emulate.runpod import KEY, RunpodApi
from infra.emulate.server import Answer, Emulator, Fault, Request, Trouble, serving
from infra.provider.endpoint import EndpointInputs, EndpointResource, EndpointState
from infra.provider.machine import MachineInputs, MachineResource
from infra.provider.resource import Condition, IncompleteError, ProviderError
from infra.stack import CloudName
from tests.emulators.runpod_published import problems

NAME = "lp-abcdefgh-interactive-1-g1"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtleQ letterpress"
ENDPOINT = EndpointSpec(
    name="lp-abcdefgh-endpoint-images",
    image="registry.example/letterpress-worker:1",
    pools=("ADA_80_PRO", "HOPPER_141"),
    least=0,
    most=3,
    env=(("LETTERPRESS_WORKER_TIER", "fp8"),),
    hub_secret="hub",
    volume_gb=60,
    data_center="EU-RO-1",
)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with serving(RunpodApi()) as emulator:
        yield emulator
        wrong = [problem for exchange in emulator.log for problem in problems(*exchange)]
        assert wrong == []
        assert "updateSshKeys" not in emulator.asked, "the account's list of keys is its owner's"


def runpod(emulator: Emulator, folder: Path) -> RunpodCloud:
    cloud = RunpodCloud.of({"RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": emulator.url}, Quota(folder / "q.json", LIMITS))
    return replace(cloud, wire=replace(cloud.wire, answer_s=2.0, pause_s=0.01), fresh_s=0.0)


def serverless(emulator: Emulator, folder: Path) -> Serverless:
    return Serverless(runpod(emulator, folder).wire)


def inputs(cloud: RunpodCloud) -> MachineInputs:
    offer = next(each for each in asyncio.run(cloud.offers()) if each.gpu == GpuModel.H100_SXM)
    return MachineInputs(name=NAME, cloud=CloudName.RUNPOD, offer=offer, image="registry.example/pod:1")


def resource(cloud: RunpodCloud) -> MachineResource:
    return MachineResource(lambda _: cloud, lambda: PUBLIC_KEY, look_pause_s=0.0)


def test_the_description_finds_what_is_not_as_described() -> None:
    """Or else the checks in this file would prove nothing."""
    wrong = Request("POST", "/v2/pods", {}, {}, {"name": "x", "gpu": {"id": "H100"}, "gpus": 1})
    said = problems(wrong, "createPod", Answer(201, {"id": 1}))
    assert any("request" in each and "gpus" in each for each in said)
    assert any("request" in each and "'image' is a required property" in each for each in said)
    assert any("answer 201" in each for each in said)


def test_offers_are_cards_with_stock_by_data_centre_on_demand_alone(emulator: Emulator, tmp_path: Path) -> None:
    api = emulator.api
    assert isinstance(api, RunpodApi)
    api.stock[2].available = False
    offers = asyncio.run(runpod(emulator, tmp_path).offers())
    assert {each.market for each in offers} == {Market.ON_DEMAND}
    assert {each.gpu for each in offers} == {GpuModel.H100_SXM, GpuModel.H100_PCIE, GpuModel.H200, "RTX A4000"}
    assert {each.region for each in offers} == {"EU-RO-1", "US-KS-2"}


def test_a_pod_is_the_workers_image_and_knows_our_key_by_its_environment(emulator: Emulator, tmp_path: Path) -> None:
    cloud = runpod(emulator, tmp_path)
    state = asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
    (rental,) = emulator.account.alive()
    body = rental.details["body"]
    assert isinstance(body, dict)
    assert body["env"] == {"PUBLIC_KEY": PUBLIC_KEY}
    assert body["image"] == "registry.example/pod:1"
    assert state.machine_id == rental.id
    assert state.address
    asyncio.run(resource(cloud).delete(state, print))
    assert emulator.account.alive() == []


STEPS = ("listPods", "createPod")
TROUBLES = (Trouble.LIMITED, Trouble.BROKEN, Trouble.BROKEN_AFTER, Trouble.LOST_REQUEST, Trouble.LOST_ANSWER)


@pytest.mark.parametrize(("trouble", "step"), list(itertools.product(TROUBLES, STEPS)))
def test_whatever_goes_wrong_once_one_pod_is_rented(
    emulator: Emulator, tmp_path: Path, trouble: Trouble, step: str
) -> None:
    cloud = runpod(emulator, tmp_path)
    wanted = inputs(cloud)
    emulator.faults.append(Fault(trouble, step, seconds=1))
    if step == "createPod" and trouble in (Trouble.BROKEN, Trouble.LOST_REQUEST):
        with pytest.raises(ProviderError, match="run the same command again"):
            asyncio.run(resource(cloud).ensure(wanted, None, print))
    asyncio.run(resource(cloud).ensure(wanted, None, print))
    assert len(emulator.account.rentals) == 1


def test_no_capacity_is_told_by_its_words_and_left_aside(emulator: Emulator, tmp_path: Path) -> None:
    cloud = runpod(emulator, tmp_path)
    wanted = inputs(cloud)
    emulator.faults.append(Fault(Trouble.NO_STOCK, "createPod"))
    with pytest.raises(NoStockError, match="no longer any instances available"):
        asyncio.run(resource(cloud).ensure(wanted, None, print))
    assert wanted.offer.id not in {each.id for each in asyncio.run(cloud.offers())}


def test_a_card_that_is_not_for_this_account_is_passed_over(emulator: Emulator, tmp_path: Path) -> None:
    """As its description of a create says of a 403; and an empty balance is no reason to try another."""
    cloud = runpod(emulator, tmp_path)
    api, wanted = emulator.api, inputs(cloud)
    assert isinstance(api, RunpodApi)
    api.refuses = (403, "the requested pool is not for this account")
    with pytest.raises(NoStockError, match="is not for this account"):
        asyncio.run(resource(cloud).ensure(wanted, None, print))
    left = asyncio.run(cloud.offers())
    assert wanted.offer.id not in {each.id for each in left}
    api.refuses = (402, "insufficient balance")
    with pytest.raises(CloudError, match="top it up") as refusal:
        asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
    assert not isinstance(refusal.value, NoStockError)
    assert asyncio.run(cloud.offers()) == left


def test_a_pod_that_exited_is_still_there_and_is_given_back_before_another_is_rented(
    emulator: Emulator, tmp_path: Path
) -> None:
    cloud = runpod(emulator, tmp_path)
    state = asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
    api = emulator.api
    assert isinstance(api, RunpodApi)
    api.exited.add(state.machine_id)
    seen = asyncio.run(resource(cloud).read(state))
    assert seen is not None
    assert seen.condition is Condition.STOPPED, "so that the next deploy repairs it"
    again = asyncio.run(resource(cloud).ensure(inputs(cloud), seen, print))
    assert again.machine_id != state.machine_id
    assert [rental.id for rental in emulator.account.alive()] == [again.machine_id]


def test_a_pod_that_boots_has_no_address_and_one_that_was_ended_is_gone(tmp_path: Path) -> None:
    now = [0.0]
    with serving(RunpodApi(Account(clock=lambda: now[0], boot_s=60))) as emulator:
        cloud = runpod(emulator, tmp_path)
        state = asyncio.run(resource(cloud).ensure(inputs(cloud), None, print))
        assert (state.phase, state.address) == (Phase.BOOTING, "")
        now[0] = 61.0
        found = asyncio.run(cloud.find(NAME))
        assert found is not None
        assert (found.phase, bool(found.address)) == (Phase.RUNNING, True)
        emulator.account.take_back()
        assert asyncio.run(cloud.look(state.machine_id)).presence is Presence.GONE


def test_an_endpoint_has_its_template_its_volume_and_the_hubs_token_by_its_name_alone(
    emulator: Emulator, tmp_path: Path
) -> None:
    account = serverless(emulator, tmp_path)
    view = asyncio.run(account.ensure(ENDPOINT))
    assert view.env == {"LETTERPRESS_WORKER_TIER": "fp8", "HF_TOKEN": "{{ RUNPOD_SECRET_hub }}"}
    assert (view.workers.min, view.workers.max) == (0, 3)
    assert view.requestUrls.run.startswith("https://")
    made = emulator.asked.count("createEndpoint")
    assert asyncio.run(account.ensure(ENDPOINT)) == view
    assert emulator.asked.count("createEndpoint") == made
    assert "updateEndpoint" not in emulator.asked, "what is as described is left alone"
    more = asyncio.run(account.ensure(replace(ENDPOINT, most=5, image="registry.example/letterpress-worker:2")))
    assert (more.id, more.workers.max, more.image) == (view.id, 5, "registry.example/letterpress-worker:2")
    asyncio.run(account.delete(ENDPOINT.name))
    assert asyncio.run(account.left("abcdefgh")) == []
    asyncio.run(account.delete(ENDPOINT.name))


@pytest.mark.parametrize("step", ["createNetworkVolume", "createTemplate", "createEndpoint"])
@pytest.mark.parametrize("trouble", [Trouble.BROKEN_AFTER, Trouble.LOST_ANSWER, Trouble.LOST_REQUEST])
def test_an_answer_that_is_lost_makes_no_second_endpoint(
    emulator: Emulator, tmp_path: Path, step: str, trouble: Trouble
) -> None:
    account = serverless(emulator, tmp_path)
    emulator.faults.append(Fault(trouble, step))
    if trouble is Trouble.LOST_REQUEST:
        with pytest.raises(CloudError):
            asyncio.run(account.ensure(ENDPOINT))
    asyncio.run(account.ensure(ENDPOINT))
    assert asyncio.run(account.left("abcdefgh")) == [ENDPOINT.name] * 3


def endpoint_inputs() -> EndpointInputs:
    return EndpointInputs(
        name=ENDPOINT.name,
        image="${WORKER_IMAGE}",
        gpu_pools=ENDPOINT.pools,
        least=0,
        most=3,
        idle_s=10,
        settings=dict(ENDPOINT.env),
        hub_secret="hub",
        volume_gb=60,
        data_center="EU-RO-1",
    )


def test_an_endpoint_that_failed_in_the_middle_is_remembered_until_all_of_it_is_gone(
    emulator: Emulator, tmp_path: Path
) -> None:
    account = serverless(emulator, tmp_path)
    kept = EndpointResource(lambda: account, {"WORKER_IMAGE": ENDPOINT.image})
    emulator.faults.append(Fault(Trouble.NO_STOCK, "createEndpoint"))
    with pytest.raises(IncompleteError) as failed:
        asyncio.run(kept.ensure(endpoint_inputs(), None, print))
    assert asyncio.run(account.left("abcdefgh")) == [ENDPOINT.name] * 2, "a volume is paid for, and a template is there"
    begun = failed.value.state
    assert isinstance(begun, EndpointState)
    seen = asyncio.run(kept.read(begun))
    assert seen is not None
    assert not seen.condition.good, "so that the next deploy makes it whole"
    whole = asyncio.run(kept.ensure(endpoint_inputs(), seen, print))
    assert whole.url.startswith("https://")
    assert "RUNPOD_SECRET" not in whole.model_dump_json(), "not even the secret's place is in the state"
    again = asyncio.run(kept.read(whole))
    assert again is not None
    assert again.condition is Condition.RUNNING
    asyncio.run(kept.delete(whole, print))
    assert asyncio.run(account.left("abcdefgh")) == []


def test_an_endpoint_that_somebody_changed_is_put_right(emulator: Emulator, tmp_path: Path) -> None:
    account = serverless(emulator, tmp_path)
    kept = EndpointResource(lambda: account, {"WORKER_IMAGE": ENDPOINT.image})
    state = asyncio.run(kept.ensure(endpoint_inputs(), None, print))
    asyncio.run(account.ensure(replace(ENDPOINT, most=9)))
    seen = asyncio.run(kept.read(state))
    assert seen is not None
    assert seen.condition is Condition.DIFFERENT
    asyncio.run(kept.ensure(endpoint_inputs(), seen, print))
    found = asyncio.run(account.find(ENDPOINT.name))
    assert found is not None
    assert found.workers.max == 3
