"""RunPod's REST v2, emulated: catalogue, pods, templates, network volumes, serverless endpoints.

Its answers are held to RunPod's published description by the tests. A pod whose image does not exist would not
come up; here every image does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

from infra.emulate.account import Account, Rental
from infra.emulate.server import Answer, Request

KEY = "emulated"
Json = Mapping[str, object]


@dataclass(slots=True)
class Stock:
    id: str
    name: str
    pool: str | None
    memory: int
    price: float
    data_centers: tuple[str, ...] = ("EU-RO-1", "US-KS-2")
    available: bool = True


def catalogue() -> list[Stock]:
    return [
        Stock("NVIDIA H100 80GB HBM3", "H100 SXM", "ADA_80_PRO", 80, 2.99),
        Stock("NVIDIA H100 PCIe", "H100 PCIe", "ADA_80_PRO", 80, 2.39),
        Stock("NVIDIA A100-SXM4-80GB", "A100 SXM", "AMPERE_80", 80, 1.49),
        Stock("NVIDIA H200", "H200 SXM", "HOPPER_141", 141, 3.59),
        Stock("NVIDIA RTX A4000", "RTX A4000", None, 16, 0.25),
    ]


ROUTES = (
    ("GET", r"/v2/account/ssh-keys", "getSshKeys"),
    ("PUT", r"/v2/account/ssh-keys", "updateSshKeys"),
    ("GET", r"/v2/catalog/gpus", "listGpuTypes"),
    ("GET", r"/v2/pods", "listPods"),
    ("POST", r"/v2/pods", "createPod"),
    ("GET", r"/v2/pods/[\w-]+", "getPod"),
    ("DELETE", r"/v2/pods/[\w-]+", "deletePod"),
    ("GET", r"/v2/templates", "listTemplates"),
    ("POST", r"/v2/templates", "createTemplate"),
    ("PATCH", r"/v2/templates/[\w-]+", "updateTemplate"),
    ("DELETE", r"/v2/templates/[\w-]+", "deleteTemplate"),
    ("GET", r"/v2/network-volumes", "listNetworkVolumes"),
    ("POST", r"/v2/network-volumes", "createNetworkVolume"),
    ("DELETE", r"/v2/network-volumes/[\w-]+", "deleteNetworkVolume"),
    ("GET", r"/v2/serverless", "listEndpoints"),
    ("POST", r"/v2/serverless", "createEndpoint"),
    ("PATCH", r"/v2/serverless/[\w-]+", "updateEndpoint"),
    ("DELETE", r"/v2/serverless/[\w-]+", "deleteEndpoint"),
)


@dataclass(slots=True)
class RunpodApi:
    account: Account = field(default_factory=Account)
    stock: list[Stock] = field(default_factory=catalogue)
    exited: set[str] = field(default_factory=set)
    """Ids of pods whose container ended."""
    refuses: tuple[int, str] | None = None
    """The status and the words that every order of a pod is refused with."""
    templates: dict[str, dict[str, object]] = field(default_factory=dict)
    volumes: dict[str, dict[str, object]] = field(default_factory=dict)
    endpoints: dict[str, dict[str, object]] = field(default_factory=dict)
    _made: int = 0

    def operation(self, request: Request, /) -> str:
        asked = (name for verb, path, name in ROUTES if verb == request.method and re.fullmatch(path, request.path))
        return next(asked, "")

    def failure(self, status: int, detail: str, retry_after_s: float | None = None, /) -> Answer:
        # An integer of seconds, never less than it takes.
        headers = {} if retry_after_s is None else {"Retry-After": str(int(retry_after_s + 0.999))}
        problem = {"title": "Request failed", "status": status, "detail": detail}
        return Answer(status, problem, headers, "application/problem+json")

    def no_stock(self) -> Answer:
        return self.failure(400, "There are no longer any instances available with the requested specifications")

    def answer(self, request: Request, operation: str, /) -> Answer:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return self.failure(401, "the bearer token is not valid")
        identity = request.path.rsplit("/", 1)[1]
        body = cast("Json", request.body) if isinstance(request.body, dict) else {}
        doing: Mapping[str, Callable[[], Answer]] = {
            "getSshKeys": lambda: Answer(200, {"keys": ["ssh-ed25519 AAAA somebody@laptop"]}),
            "listGpuTypes": lambda: Answer(200, {"gpus": [_gpu(each) for each in self.stock]}),
            "listPods": lambda: Answer(200, {"pods": [self._pod(each) for each in self.account.alive()]}),
            "createPod": lambda: self._create_pod(body),
            "getPod": lambda: self._of_pod(identity, lambda rental: Answer(200, self._pod(rental))),
            "deletePod": lambda: self._of_pod(identity, self._delete_pod),
            "listTemplates": lambda: Answer(200, {"templates": list(self.templates.values())}),
            "createTemplate": lambda: self._make(self.templates, _template(body)),
            "updateTemplate": lambda: self._update(self.templates, identity, body),
            "deleteTemplate": lambda: self._delete(self.templates, identity),
            "listNetworkVolumes": lambda: Answer(200, {"networkVolumes": list(self.volumes.values())}),
            "createNetworkVolume": lambda: self._make(self.volumes, {"type": "STANDARD", **body}),
            "deleteNetworkVolume": lambda: self._delete(self.volumes, identity),
            "listEndpoints": lambda: Answer(
                200, {"endpoints": [_without(each, "bound") for each in self.endpoints.values()]}
            ),
            "createEndpoint": lambda: self._create_endpoint(body),
            "updateEndpoint": lambda: self._update_endpoint(identity, body),
            "deleteEndpoint": lambda: self._delete_endpoint(identity),
        }
        return doing[operation]() if operation in doing else self.failure(404, "no such path")

    def _create_pod(self, body: Json) -> Answer:
        if self.refuses:
            return self.failure(*self.refuses)
        gpu = cast("Json", body["gpu"])
        stock = next((each for each in self.stock if each.id == gpu["id"]), None)
        if stock is None:
            return self.failure(422, f"gpu.id: {gpu['id']} is not known")
        wanted = cast("list[str]", body.get("dataCenterIds") or stock.data_centers)
        placed = next((center for center in wanted if center in stock.data_centers), None)
        if not stock.available or placed is None:
            return self.no_stock()
        key = str(cast("Json", body.get("env") or {}).get("PUBLIC_KEY", ""))
        rental = self.account.rent(str(body["name"]), stock.price, (key,), body=dict(body), center=placed)
        return Answer(201, self._pod(rental))

    def _of_pod(self, identity: str, then: Callable[[Rental], Answer]) -> Answer:
        rental = self.account.rentals.get(identity)
        return self.failure(404, "pod not found") if rental is None or rental.ended is not None else then(rental)

    def _delete_pod(self, rental: Rental) -> Answer:
        self.account.end(rental)
        return Answer(204)

    def _pod(self, rental: Rental) -> dict[str, object]:
        body = cast("Json", rental.details["body"])
        up = self.account.booted(rental) and rental.id not in self.exited
        reach = self.account.address(rental) if up else None
        status = "EXITED" if rental.id in self.exited else "RUNNING" if up else "PROVISIONING"
        direct = reach and {
            "host": reach.address,
            "port": reach.port,
            "username": reach.user,
            "command": f"ssh {reach.user}@{reach.address} -p {reach.port}",
        }
        return {
            "id": rental.id,
            "name": rental.name,
            "status": status,
            "actions": ["stop", "restart", "terminate"] if up else ["terminate"],
            "image": body.get("image", ""),
            "args": body.get("args", ""),
            "disk": body.get("disk", 50),
            "mounts": body.get("mounts", {}),
            "ports": body.get("ports", []),
            "env": body.get("env", {}),
            "registry": None,
            "gpu": body["gpu"],
            "cloud": body.get("cloud", "SECURE"),
            "dataCenterId": rental.details["center"],
            "cudaVersion": "12.8" if up else None,
            "ssh": {"proxy": None, "direct": direct},
            "template": None,
            "cost": 0.0 if status == "EXITED" else rental.rate,
            "locked": False,
            "globalNetworking": {"enabled": False},
            "runtime": {} if up else None,
            "createdAt": _iso(rental.began),
            "startedAt": _iso(rental.began) if up else None,
        }

    def _endpoints(self) -> Answer:
        return Answer(200, {"endpoints": [_without(each, "bound") for each in self.endpoints.values()]})

    def _create_endpoint(self, body: Json) -> Answer:
        template = self.templates.get(str(body.get("templateId")))
        if template is None:
            return self.failure(404, "template not found")
        settings = {name: template[name] for name in ("image", "args", "disk", "ports", "env", "registry")}
        gpu = {"count": 1, "allowedCudaVersions": [], "minCudaVersion": None, **cast("Json", body["gpu"])}
        kept = {name: body[name] for name in ("name", "type", "scaling", "workers", "timeout", "flashboot")}
        lists = {"dataCenterIds": body.get("dataCenterIds", []), "networkVolumes": body.get("networkVolumes", [])}
        made = {"createdAt": _iso(self.account.clock()), "gpu": gpu, **settings, **kept, **lists}
        answer = self._make(self.endpoints, made)
        endpoint = cast("dict[str, object]", answer.data)
        base = f"https://api.runpod.ai/v2/{endpoint['id']}"
        paths = ("run", "runSync", "status", "stream", "cancel", "retry", "purgeQueue", "health")
        endpoint["requestUrls"] = {path: f"{base}/{path.lower()}" for path in paths}
        endpoint["bound"] = body["templateId"]
        return Answer(201, _without(endpoint, "bound"))

    def _update_endpoint(self, identity: str, body: Json) -> Answer:
        endpoint = self.endpoints.get(identity)
        if endpoint is None:
            return self.failure(404, "endpoint not found")
        template = self.templates.get(str(body.get("templateId")), {})
        endpoint |= {name: template[name] for name in ("image", "args", "disk", "ports", "env") if name in template}
        endpoint["gpu"] = {**cast("Json", endpoint["gpu"]), **cast("Json", body.get("gpu", {}))}
        endpoint["workers"] = {**cast("Json", endpoint["workers"]), **cast("Json", body.get("workers", {}))}
        endpoint["networkVolumes"] = body.get("networkVolumes", endpoint["networkVolumes"])
        return Answer(200, _without(endpoint, "bound"))

    def _delete_endpoint(self, identity: str) -> Answer:
        """With the template that is bound to it."""
        endpoint = self.endpoints.get(identity)
        if endpoint:
            self.templates.pop(str(endpoint["bound"]), None)
        return self._delete(self.endpoints, identity)

    def _make(self, kept: dict[str, dict[str, object]], body: Json) -> Answer:
        with self.account.lock:
            self._made += 1
            made = {"id": f"made{self._made}", **body}
            kept[str(made["id"])] = made
        return Answer(201, made)

    def _update(self, kept: dict[str, dict[str, object]], identity: str, body: Json) -> Answer:
        if identity not in kept:
            return self.failure(404, "not found")
        kept[identity] |= body
        return Answer(200, kept[identity])

    def _delete(self, kept: dict[str, dict[str, object]], identity: str) -> Answer:
        return Answer(204) if kept.pop(identity, None) else self.failure(404, "not found")


def _template(body: Json) -> Json:
    return {
        "args": "",
        "disk": 20,
        "mounts": {},
        "ports": [],
        "env": {},
        "registry": None,
        "serverless": False,
        "public": False,
        "category": "NVIDIA",
        "startSsh": True,
        "startJupyter": True,
        "allowedCudaVersions": [],
        **body,
    }


def _gpu(stock: Stock) -> dict[str, object]:
    level = "HIGH" if stock.available else "NONE"
    return {
        "id": stock.id,
        "name": stock.name,
        "pool": stock.pool,
        "manufacturer": "NVIDIA",
        "memory": stock.memory,
        "secure": True,
        "community": False,
        "price": {"secure": stock.price, "community": 0.0},
        "maxCount": {"secure": 8, "community": 0},
        "availability": level,
        "dataCenters": [{"id": each, "name": each, "availability": level} for each in stock.data_centers],
        "cudaVersions": [],
    }


def _without(values: Json, name: str) -> dict[str, object]:
    return {key: value for key, value in values.items() if key != name}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
