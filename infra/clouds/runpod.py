"""RunPod's pods (REST v2): containers that are the worker's own image, on demand.

The tests hold it to RunPod's published description. Spot is not in v2. An account's list of SSH keys can only be
replaced as a whole, so it is never touched: the stack's key reaches a pod by its environment (`PUBLIC_KEY`), where
our image looks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from infra.clouds import (
    Ability,
    CloudError,
    HostKind,
    Machine,
    MachineSpec,
    Market,
    NoStockError,
    Observed,
    Offer,
    OutcomeUnknownError,
    Phase,
    Presence,
)
from infra.clouds.account import ListedCloud, key_of, refused
from infra.clouds.quota import Limit, Quota
from infra.clouds.wire import REQUESTS, Reply, Wire, read_as, shown
from infra.costs.gpus import named as card_named

NAME = "runpod"
BASE = "https://api.runpod.io"
API_KEY = "RUNPOD_API_KEY"
API_URL = "RUNPOD_API_URL"
KEYS_ARE_MADE = "in RunPod's console (settings, API keys)"
LIMITS = {REQUESTS: Limit(100, 60.0)}
"""Its own limits are told in headers and in 429s; this only keeps our processes from racing one another."""
BLOCKED_S = 300.0
FRESH_S = 5.0
DISK_GB = 40
"""Of the container: our image is 6 GB, and logs and kernels want room."""
VOLUME_GB = 80
VOLUME_PATH = "/workspace"
"""Where our pod's image keeps weights, its host key and its token."""
SSH_PORT = "22/tcp"
PASSES_ON = {400, 403}
"""Of a create: not to be placed there, or not for this account. Try the next, its description says; a request that
breaks a rule has no other sign than that all are refused."""


class PodStatus(StrEnum):
    PROVISIONING = "PROVISIONING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    EXITED = "EXITED"
    ERROR = "ERROR"
    TERMINATED = "TERMINATED"

    @property
    def phase(self) -> Phase | None:
        """None: gone. One that exited is there, and its volume is paid for."""
        return {
            PodStatus.PROVISIONING: Phase.BOOTING,
            PodStatus.STARTING: Phase.BOOTING,
            PodStatus.RUNNING: Phase.RUNNING,
            PodStatus.EXITED: Phase.STOPPED,
            PodStatus.ERROR: Phase.STOPPED,
        }.get(self)


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _DataCenter(_Read):
    id: str
    availability: str


class _Price(_Read):
    secure: float


class GpuType(_Read):
    id: str
    name: str
    memory: int
    secure: bool
    price: _Price
    dataCenters: list[_DataCenter] = Field(default_factory=list)  # noqa: N815 - the API's own name


class _GpuTypes(_Read):
    gpus: list[GpuType]


class _Ssh(_Read):
    host: str
    port: int
    username: str


class _PodSsh(_Read):
    direct: _Ssh | None = None


class Pod(_Read):
    id: str
    name: str
    status: PodStatus
    cost: float = 0.0
    ssh: _PodSsh = _PodSsh()
    createdAt: datetime | None = None  # noqa: N815


class _Pods(_Read):
    pods: list[Pod]


def wire_of(environ: Mapping[str, str], quota: Quota) -> Wire:
    """RunPod's API, with the key of the environment; it is read when it is used."""
    key = key_of(environ, API_KEY, KEYS_ARE_MADE)
    return Wire("RunPod", environ.get(API_URL) or BASE, key, quota)


@dataclass(frozen=True, slots=True)
class RunpodCloud(ListedCloud):
    fresh_s: float = FRESH_S

    @classmethod
    def of(cls, environ: Mapping[str, str], quota: Quota) -> RunpodCloud:
        return cls(wire_of(environ, quota))

    @property
    def name(self) -> str:
        return NAME

    @property
    def ability(self) -> Ability:
        return Ability(
            rents=True,
            markets=frozenset({Market.ON_DEMAND}),
            host=HostKind.CONTAINER,
            cannot=("rent spot", "run a whole machine: no docker, no firewall of its own", "hold stock that it lists"),
        )

    async def offers(self) -> Sequence[Offer]:
        """One GPU a pod, wherever the catalogue reports stock, in RunPod's own data centres."""
        params: dict[str, str | int] = {"include": "AVAILABILITY", "product": "POD", "cloud": "SECURE", "count": 1}
        reply = await self.wire.ask("GET", "/v2/catalog/gpus", params=params)
        require(reply, "its catalogue")
        blocked = await self.wire.quota.blocked()
        found = [
            Offer(
                id=f"{gpu.id}/{center.id}",
                cloud=NAME,
                market=Market.ON_DEMAND,
                gpu=card_named(gpu.id, gpu.memory) or gpu.name,
                gpus=1,
                region=center.id,
                price=gpu.price.secure,
                memory_gib=gpu.memory,
                terms=(("gpu", gpu.id),),
            )
            for gpu in read_as(_GpuTypes, reply.data, "RunPod's catalogue").gpus
            for center in gpu.dataCenters
            if gpu.secure and gpu.price.secure > 0 and center.availability != "NONE"
        ]
        return [offer for offer in found if offer.id not in blocked]

    async def create(self, spec: MachineSpec) -> Machine:
        if not spec.image:
            raise CloudError(f"{spec.name}: a pod is a container, and the stack file names no `pod_image` for it")
        body: dict[str, JsonValue] = {
            "name": spec.name,
            "image": spec.image,
            "cloud": "SECURE",
            "gpu": {"id": dict(spec.offer.terms)["gpu"], "count": spec.offer.gpus},
            "dataCenterIds": [spec.offer.region],
            "disk": DISK_GB,
            "mounts": {"persistent": {"size": VOLUME_GB, "path": VOLUME_PATH}},
            "ports": [SSH_PORT],
            "env": {"PUBLIC_KEY": spec.public_key},
        }
        try:
            reply = await self.wire.order("/v2/pods", body, spec.name, REQUESTS)
        finally:
            self.seen.forget()
        if reply.status in PASSES_ON:
            await self.wire.quota.block(spec.offer.id, BLOCKED_S)
            raise NoStockError(
                f"{spec.name}: RunPod does not place {spec.offer.gpu} in {spec.offer.region}: {_said(reply)}. It is "
                f"left aside for {BLOCKED_S / 60:.0f} minutes. If it says this of every offer, the request is wrong"
            )
        require(reply, spec.name)
        try:
            return _machine(read_as(Pod, reply.data, f"{spec.name}'s pod"))
        except CloudError as error:
            raise OutcomeUnknownError(str(error)) from None  # it was rented, whatever the answer looks like

    async def look(self, machine_id: str) -> Observed:
        try:
            reply = await self.wire.ask("GET", f"/v2/pods/{machine_id}")
            if reply.status == 404:
                return Observed(Presence.GONE, reason="RunPod knows no such pod")
            require(reply, machine_id)
            pod = read_as(Pod, reply.data, f"pod {machine_id}")
        except CloudError as error:
            return Observed(Presence.UNKNOWN, reason=str(error))
        if pod.status.phase is None:
            return Observed(Presence.GONE, reason=pod.status.lower())
        return Observed(Presence.THERE, _machine(pod))

    async def delete(self, machine_id: str) -> None:
        try:
            reply = await self.wire.ask("DELETE", f"/v2/pods/{machine_id}")
        finally:
            self.seen.forget()
        if reply.status != 404:
            require(reply, machine_id)

    async def listed(self) -> tuple[Machine, ...]:
        reply = await self.wire.ask("GET", "/v2/pods")
        require(reply, "its pods")
        pods = read_as(_Pods, reply.data, "RunPod's list of pods").pods
        return tuple(_machine(pod) for pod in pods if pod.status.phase is not None)


def _machine(pod: Pod) -> Machine:
    direct = pod.ssh.direct
    return Machine(
        id=pod.id,
        name=pod.name,
        address=direct.host if direct else "",
        port=direct.port if direct else 22,
        user=direct.username if direct else "root",
        phase=pod.status.phase or Phase.STOPPED,
        price=pod.cost,
        rented_at=pod.createdAt,
    )


def _said(reply: Reply) -> str:
    """The `detail` of a problem, and what of the request was wrong."""
    if not isinstance(reply.data, dict):
        return shown(reply.data)
    errors = reply.data.get("errors")
    more = f" ({'; '.join(str(each) for each in errors)})" if isinstance(errors, list) and errors else ""
    return f"{reply.data.get('detail') or reply.data.get('title') or 'no reason given'}{more}"


def require(reply: Reply, what: str) -> None:
    """Raise CloudError, with what to do, for anything but a success."""
    if reply.ok:
        return
    raise CloudError(f"{what}: {refused('RunPod', reply.status, _said(reply), API_KEY, KEYS_ARE_MADE)}")
