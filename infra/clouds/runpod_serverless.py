"""RunPod's serverless (REST v2): a template, a network volume for the weights, and the endpoint that scales over it.

Each is found by its name, which carries the stack's id, before it is made: an order whose answer never came is
followed by a look. The hub's token is RunPod's own secret, named here and never held: `{{ RUNPOD_SECRET_name }}`
becomes its value inside a worker alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from infra.clouds import CloudError, OutcomeUnknownError
from infra.clouds.quota import Quota
from infra.clouds.runpod import DISK_GB, require, wire_of
from infra.clouds.wire import REQUESTS, Wire, read_list

VOLUMES, TEMPLATES, ENDPOINTS = "/v2/network-volumes", "/v2/templates", "/v2/serverless"
EXECUTION_MS = 600_000
"""Of one request: 100 steps at the largest size on the slowest card fit."""

M = TypeVar("M", bound=BaseModel)


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Named(_Read):
    id: str
    name: str


class Workers(_Read):
    min: int = 0
    max: int = 0
    idleTimeout: int | None = None  # noqa: N815 - the API's own names, here and below


class _Gpu(_Read):
    pools: list[str] = Field(default_factory=list)


class _Urls(_Read):
    run: str = ""
    runSync: str = ""  # noqa: N815


class EndpointView(_Named):
    workers: Workers = Workers()
    gpu: _Gpu | None = None
    image: str = ""
    env: dict[str, str] = Field(default_factory=dict)
    networkVolumes: list[str] = Field(default_factory=list)  # noqa: N815
    requestUrls: _Urls = _Urls()  # noqa: N815


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """A serverless endpoint, described. `env` holds no secret; `hub_secret` names one of the RunPod account."""

    name: str
    image: str
    pools: tuple[str, ...]
    least: int = 0
    most: int = 3
    idle_s: int = 10
    queue_delay_s: float = 4.0
    env: tuple[tuple[str, str], ...] = ()
    hub_secret: str = ""
    volume_gb: int = 0
    data_center: str = ""

    @property
    def environment(self) -> dict[str, JsonValue]:
        secret = {"HF_TOKEN": f"{{{{ RUNPOD_SECRET_{self.hub_secret} }}}}"} if self.hub_secret else {}
        return {**dict(self.env), **secret}


@dataclass(frozen=True, slots=True)
class Serverless:
    """One account's endpoints."""

    wire: Wire

    @classmethod
    def of(cls, environ: Mapping[str, str], quota: Quota) -> Serverless:
        return cls(wire_of(environ, quota))

    async def find(self, name: str) -> EndpointView | None:
        found = await self._listed(ENDPOINTS, "endpoints", EndpointView)
        return next((each for each in found if each.name == name), None)

    async def ensure(self, spec: EndpointSpec) -> EndpointView:
        """Make the volume, the template and the endpoint, or change what differs of the last two."""
        volumes: list[JsonValue] = [await self._volume(spec)] if spec.volume_gb else []
        template = await self._template(spec)
        there = await self.find(spec.name)
        if there is None:
            body: dict[str, JsonValue] = {
                "name": spec.name,
                "type": "QUEUE",
                "templateId": template,
                "gpu": {"pools": list(spec.pools), "count": 1},
                "scaling": {"type": "QUEUE_DELAY", "queueDelay": spec.queue_delay_s},
                "workers": {"min": spec.least, "max": spec.most, "idleTimeout": spec.idle_s},
                "networkVolumes": volumes,
                "dataCenterIds": [spec.data_center] if spec.data_center else [],
                "flashboot": "FLASHBOOT",
                "timeout": EXECUTION_MS,
            }
            await self._order(ENDPOINTS, "endpoints", body, spec.name)
        elif differs(spec, there):
            change: dict[str, JsonValue] = {
                "templateId": template,
                "gpu": {"pools": list(spec.pools)},
                "workers": {"min": spec.least, "max": spec.most, "idleTimeout": spec.idle_s},
                "networkVolumes": volumes,
            }
            require(await self.wire.ask("PATCH", f"{ENDPOINTS}/{there.id}", change), spec.name)
        found = await self.find(spec.name)
        if found is None:
            raise CloudError(f"{spec.name}: RunPod took the order for it and does not list it; run this again")
        return found

    async def delete(self, name: str, *, volume: bool = True) -> None:
        """The endpoint (its template goes with it), its volume with the weights in it; gone is success."""
        for path, key in ((ENDPOINTS, "endpoints"), (TEMPLATES, "templates"), (VOLUMES, "networkVolumes")):
            if path == VOLUMES and not volume:
                continue
            for each in await self._listed(path, key, _Named):
                if each.name == name:
                    reply = await self.wire.ask("DELETE", f"{path}/{each.id}")
                    if reply.status != 404:
                        require(reply, name)

    async def left(self, stack_id: str) -> list[str]:
        """Names of what is on the account in a stack's name."""
        found = []
        for path, key in ((ENDPOINTS, "endpoints"), (TEMPLATES, "templates"), (VOLUMES, "networkVolumes")):
            found += [each.name for each in await self._listed(path, key, _Named)]
        return [name for name in found if name.startswith(f"lp-{stack_id}-")]

    async def _volume(self, spec: EndpointSpec) -> str:
        there = await self._named(VOLUMES, "networkVolumes", spec.name)
        body: dict[str, JsonValue] = {"name": spec.name, "size": spec.volume_gb, "dataCenter": spec.data_center}
        return there or await self._order(VOLUMES, "networkVolumes", body, spec.name)

    async def _template(self, spec: EndpointSpec) -> str:
        settings: dict[str, JsonValue] = {"image": spec.image, "disk": DISK_GB, "env": spec.environment}
        there = await self._named(TEMPLATES, "templates", spec.name)
        if there:
            require(await self.wire.ask("PATCH", f"{TEMPLATES}/{there}", settings), spec.name)
            return there
        body = {"name": spec.name, "serverless": True, "startSsh": False, "startJupyter": False, **settings}
        return await self._order(TEMPLATES, "templates", body, spec.name)

    async def _order(self, path: str, key: str, body: dict[str, JsonValue], name: str) -> str:
        """Make one; after an answer that never came, look for it instead of asking again."""
        try:
            reply = await self.wire.order(path, body, name, REQUESTS)
        except OutcomeUnknownError:
            there = await self._named(path, key, name)
            if there is None:
                raise
            return there
        require(reply, name)
        there = await self._named(path, key, name)
        if there is None:
            raise CloudError(f"{name}: RunPod made it in {path}, and does not list it; run this again")
        return there

    async def _named(self, path: str, key: str, name: str) -> str | None:
        return next((each.id for each in await self._listed(path, key, _Named) if each.name == name), None)

    async def _listed(self, path: str, key: str, model: type[M]) -> list[M]:
        reply = await self.wire.ask("GET", path)
        require(reply, f"its {key}")
        wrapped = reply.data if isinstance(reply.data, dict) else {}
        return read_list(model, wrapped.get(key), f"RunPod's list of {key}")


def differs(spec: EndpointSpec, there: EndpointView) -> bool:
    """Whether an endpoint is not as described."""
    workers = (there.workers.min, there.workers.max, there.workers.idleTimeout)
    return (
        workers != (spec.least, spec.most, spec.idle_s)
        or (there.gpu.pools if there.gpu else []) != list(spec.pools)
        or there.image != spec.image
        or there.env != spec.environment
    )
