"""`doctor --live` against providers that answer as they are taken to, and against some that have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from infra.doctor import Finding, Surroundings, Verdict
from infra.doctor.live import live
from infra.emulate.runpod import KEY as RUNPOD_KEY
from infra.emulate.runpod import RunpodApi
from infra.emulate.server import Answer, Emulator, Request, serving
from infra.emulate.spheron import KEY, SpheronApi
from infra.paths import StackPaths
from infra.stack import parse
from tests.integration.infra.rented_rig import DESCRIPTION

READ_ONLY = {"listOffers", "balance", "listKeys", "listDeployments"}


async def asked(emulator: Emulator, folder: Path, stack: str = DESCRIPTION) -> list[Finding]:
    environ = {
        "SPHERON_API_URL": emulator.url,
        "SPHERON_API_KEY": KEY,
        "RUNPOD_API_URL": emulator.url,
        "RUNPOD_API_KEY": RUNPOD_KEY,
    }
    paths = StackPaths.of("hired", folder)
    return list(await live(Surroundings(parse(stack, "stack.yaml", folder), paths, environ, None)))


def told(findings: list[Finding], verdict: Verdict) -> list[str]:
    return [finding.what for finding in findings if finding.verdict is verdict]


@dataclass(slots=True)
class Changed(SpheronApi):
    """`offers` are changed fields of every offer; a field that is None is left out."""

    offers: Mapping[str, object] | None = None

    def answer(self, request: Request, operation: str, /) -> Answer:
        # Not super(): a class with slots is made twice.
        answer = SpheronApi.answer(self, request, operation)
        if operation == "listOffers" and self.offers:
            for group in cast("dict[str, Any]", answer.data)["data"]:
                for offer in group["offers"]:
                    offer.update(self.offers)
                    for name in [name for name, value in self.offers.items() if value is None]:
                        del offer[name]
        return answer


@pytest.mark.parametrize("bare", [True, False])
async def test_an_api_that_answers_as_it_did_is_said_to_and_nothing_is_changed(tmp_path: Path, bare: bool) -> None:
    api = SpheronApi(bare_lists=bare)
    api.account.rent("somebody-elses", 1.0, ())
    with serving(api) as emulator:
        findings = await asked(emulator, tmp_path)
        assert set(emulator.asked) <= READ_ONLY
    assert [finding.verdict for finding in findings if "deployments" not in finding.what] == [Verdict.OK] * 4
    # The other's machine was rented without what an order of ours would say of it.
    assert told(findings, Verdict.FAIL) == []


async def test_what_has_changed_is_named_and_what_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    renamed = {"spot_price": None, "spotPrice": 0.8, "clusters": [{"id": "eu-north"}]}
    with serving(Changed(offers=renamed)) as emulator:
        findings = await asked(emulator, tmp_path)
    (said,) = told(findings, Verdict.WARN)
    assert "data[].offers[].clusters[] is an object, and not text" in said
    assert "has data[].offers[].spotPrice (a number), which is not known" in said
    assert "lacks data[].offers[].spot_price (a number)" in said
    assert told(findings, Verdict.FAIL) == [], "regions may be objects, and spot is only not seen"

    with serving(Changed(offers={"gpuCount": "one"})) as emulator:
        findings = await asked(emulator, tmp_path / "other")
    assert any("gpuCount is text, and not a number" in what for what in told(findings, Verdict.WARN))
    (broken,) = told(findings, Verdict.FAIL)
    assert "gpuCount" in broken


async def test_a_provider_that_is_away_or_refuses_the_key_is_a_failure_of_each_question(tmp_path: Path) -> None:
    class Strict(SpheronApi):
        def answer(self, request: Request, operation: str, /) -> Answer:
            return (
                self.failure(401, "Invalid API key") if operation == "balance" else super().answer(request, operation)
            )

    with serving(Strict()) as emulator:
        findings = await asked(emulator, tmp_path)
        assert told(findings, Verdict.FAIL) == ["Spheron's balance: refused with 401"]


async def test_runpods_catalogue_pods_and_endpoints_are_compared(tmp_path: Path) -> None:
    stack = (
        DESCRIPTION.replace("cloud: spheron", "cloud: runpod\npod_image: image:1")
        .replace("market: spot, ", "")
        .replace(", fallback: on_demand", "")
    )
    with serving(RunpodApi()) as emulator:
        findings = await asked(emulator, tmp_path, stack)
        assert not {name for name in emulator.asked if not name.startswith(("list", "get"))}
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    assert len(findings) == 6
