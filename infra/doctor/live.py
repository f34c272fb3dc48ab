"""`letterpress doctor --live`: does a provider still answer as this version takes it to?

The true API is asked what may be asked without changing anything, once each, and its answers are compared with those
of its emulator, which all of this was tried with. What differs is named: a difference in what is read is a failure,
any other a warning, for it may be the first sign of one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from infra.clouds import CloudError
from infra.clouds.runpod import wire_of
from infra.clouds.spheron import SpheronCloud
from infra.clouds.wire import Wire
from infra.doctor import Finding, Surroundings, Verdict
from infra.doctor.shape import Shape, differences, shape_of
from infra.emulate.runpod import KEY as RUNPOD_KEY
from infra.emulate.runpod import RunpodApi
from infra.emulate.server import Api, Request
from infra.emulate.spheron import KEY as SPHERON_KEY
from infra.emulate.spheron import SpheronApi
from infra.provider.site import Site
from infra.stack import CloudName

CHECK = "live"
SHOWN = 12
OPEN_KEYS = frozenset({"env", "mounts", "runtime"})
"""Their keys are users' own."""
REPORT = "look for a newer version of Letterpress, or report these lines"


@dataclass(frozen=True, slots=True)
class Question:
    """A GET. `what` it is about, for people; `path` and its parameters."""

    what: str
    path: str
    params: tuple[tuple[str, str | int], ...] = ()


SPHERON = (
    Question("offers", "/api/gpu-offers", (("page", 1), ("limit", 100))),
    Question("balance", "/api/balance"),
    Question("SSH keys", "/api/ssh-keys"),
    Question("deployments", "/api/deployments", (("page", 1), ("limit", 100))),
)
RUNPOD = (
    Question(
        "GPU types",
        "/v2/catalog/gpus",
        (("include", "AVAILABILITY"), ("product", "POD"), ("cloud", "SECURE"), ("count", 1)),
    ),
    Question("pods", "/v2/pods"),
    Question("templates", "/v2/templates"),
    Question("network volumes", "/v2/network-volumes"),
    Question("endpoints", "/v2/serverless"),
)


async def live(around: Surroundings) -> Sequence[Finding]:
    """Of the cloud that the stack rents from, and of RunPod where it describes endpoints."""
    site, described = Site(around.paths, around.environ), around.description
    missing = site.unasked()
    clouds = {described.cloud} | ({CloudName.RUNPOD} if described.serverless else set())
    found: list[Finding] = []
    for name in sorted(clouds & {CloudName.SPHERON, CloudName.RUNPOD}):
        if name in missing:
            found.append(Finding(CHECK, Verdict.WARN, f"{name} was not asked", f"export {missing[name]}"))
        elif name is CloudName.SPHERON:
            cloud = site.cloud(name)
            assert isinstance(cloud, SpheronCloud)  # noqa: S101 - by its name
            found += await compared("Spheron", cloud.wire, SPHERON, _spheron_shapes())
            found += await _read("Spheron", cloud.offers)
        else:
            wire = wire_of(around.environ, site.quota(name, {}))
            found += await compared("RunPod", wire, RUNPOD, _runpod_shapes())
            found += await _read("RunPod", site.cloud(name).offers)
    return found or [Finding(CHECK, Verdict.OK, f"{described.cloud} rents nothing: there is no API to ask")]


async def compared(
    provider: str, wire: Wire, questions: Sequence[Question], expected: Mapping[str, Sequence[Shape]]
) -> list[Finding]:
    """A finding for each question. `expected` are the shapes that are taken, by what is asked."""
    found = []
    for question in questions:
        try:
            reply = await wire.ask("GET", question.path, params=dict(question.params))
        except CloudError as error:
            found.append(Finding(CHECK, Verdict.FAIL, str(error)))
            continue
        what = f"{provider}'s {question.what}"
        if not reply.ok:
            found.append(Finding(CHECK, Verdict.FAIL, f"{what}: refused with {reply.status}", "see the account's key"))
            continue
        shape = shape_of(reply.data, OPEN_KEYS)
        told = min((differences(each, shape) for each in expected[question.what]), key=len)
        if told:
            more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
            found.append(Finding(CHECK, Verdict.WARN, f"{what}: {'; '.join(told[:SHOWN])}{more}", REPORT))
        else:
            found.append(Finding(CHECK, Verdict.OK, f"{what}: as emulated ({len(shape.types)} fields)"))
    return found


async def _read(provider: str, offers: Callable[[], Awaitable[Sequence[object]]]) -> list[Finding]:
    """Whether we can read it at all."""
    try:
        count = len(await offers())
    except CloudError as error:
        return [Finding(CHECK, Verdict.FAIL, str(error), REPORT)]
    if not count:
        return [Finding(CHECK, Verdict.WARN, f"{provider} offers nothing that this version can rent", REPORT)]
    return [Finding(CHECK, Verdict.OK, f"{provider}: {count} offers are read")]


def _spheron_shapes() -> Mapping[str, Sequence[Shape]]:
    """With a key and a machine, so that all is there that can be; lists of machines in both their forms."""

    def asked(api: SpheronApi) -> Iterator[tuple[str, Shape]]:
        for question in SPHERON:
            yield question.what, _answered(api, question, SPHERON_KEY)

    found: dict[str, list[Shape]] = {}
    for bare in (False, True):
        api = SpheronApi(bare_lists=bare)
        api.keys["key-1"] = {"id": "key-1", "name": "lp", "publicKey": "ssh-ed25519 AAAA lp"}
        api.account.rent(
            "lp-abcdefgh-batch-1-g1",
            0.82,
            (),
            provider="p",
            gpuCount=1,
            region="eu",
            instanceType="SPOT",
            sshKeyId="key",
        )
        for what, shape in asked(api):
            found.setdefault(what, []).append(shape)
    return found


def _runpod_shapes() -> Mapping[str, Sequence[Shape]]:
    api = RunpodApi()
    gpu = {"id": api.stock[0].id, "count": 1}
    _ordered(api, "/v2/pods", {"name": "lp", "image": "i", "gpu": gpu, "ports": ["22/tcp"], "env": {}})
    _ordered(api, "/v2/network-volumes", {"name": "lp", "size": 60, "dataCenterId": "EU-RO-1"})
    _ordered(api, "/v2/templates", {"name": "lp", "image": "i", "serverless": True})
    return {question.what: (_answered(api, question, RUNPOD_KEY),) for question in RUNPOD}


def _answered(api: Api, question: Question, key: str) -> Shape:
    params = {name: str(value) for name, value in question.params}
    return shape_of(_asked(api, Request("GET", question.path, params, _headers(key), None)), OPEN_KEYS)


def _ordered(api: RunpodApi, path: str, body: Mapping[str, object]) -> None:
    _asked(api, Request("POST", path, {}, _headers(RUNPOD_KEY), dict(body)))


def _asked(api: Api, request: Request) -> object:
    return api.answer(request, api.operation(request)).data


def _headers(key: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {key}", "user-agent": "letterpress"}
