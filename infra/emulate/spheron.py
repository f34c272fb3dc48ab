"""Spheron's API, emulated: offers in pages, SSH keys, deployments, minimum run times, limits.

Prices and cards are those published on 2026-06-22. What it answers is what its documentation and other clients
tell of it; there is no published description to hold it to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

from infra.emulate.account import Account, Rental
from infra.emulate.server import Answer, Request

MINIMUM_MINUTES = 20
CREATES, CREATES_WITHIN_S = 10, 900.0
KEY = "emulated"
TEAM = {"teamId": "team-1", "teamName": "ours", "balance": 100.0, "isCurrentTeam": True, "role": "owner"}


@dataclass(slots=True)
class Stock:
    """One thing for sale. `phantom` is listed as available, and refused when it is ordered."""

    provider: str
    gpu_type: str
    model: str
    name: str
    interconnect: str
    memory: int
    price: float
    spot_price: float | None
    gpus: int = 1
    regions: tuple[str, ...] = ("us-central", "eu-north")
    minimum_minutes: int = MINIMUM_MINUTES
    available: bool = True
    phantom: bool = False

    @property
    def offer_id(self) -> str:
        return f"{self.provider}-{self.name.lower().replace(' ', '-')}-{self.gpus}"


def published() -> list[Stock]:
    """The guide's cards at its day's prices."""
    return [
        Stock("lattice", "H100_SXM5", "H100", "H100 SXM5 80GB", "SXM5", 80, 3.98, 2.91),
        Stock("lattice", "H100_PCIE", "H100", "H100 PCIe 80GB", "PCIe", 80, 2.01, None),
        Stock("quarry", "A100_SXM4_80G", "A100", "A100 SXM4 80GB", "SXM4", 80, 1.69, 0.82),
        Stock("quarry", "A100_PCIE_80G", "A100", "A100 PCIe 80GB", "PCIe", 80, 1.48, 1.19),
        Stock("quarry", "A100_SXM4_40G", "A100", "A100 SXM4 40GB", "SXM4", 40, 1.57, None),
    ]


ROUTES = (
    ("GET", re.compile(r"/api/gpu-offers"), "listOffers"),
    ("GET", re.compile(r"/api/balance"), "balance"),
    ("GET", re.compile(r"/api/ssh-keys"), "listKeys"),
    ("POST", re.compile(r"/api/ssh-keys"), "addKey"),
    ("GET", re.compile(r"/api/deployments"), "listDeployments"),
    ("POST", re.compile(r"/api/deployments"), "createDeployment"),
    ("GET", re.compile(r"/api/deployments/(\w+)"), "getDeployment"),
    ("DELETE", re.compile(r"/api/deployments/(\w+)"), "deleteDeployment"),
    ("GET", re.compile(r"/api/deployments/(\w+)/can-terminate"), "canTerminate"),
)


@dataclass(slots=True)
class SpheronApi:
    account: Account = field(default_factory=Account)
    stock: list[Stock] = field(default_factory=published)
    bare_lists: bool = False
    """Answer lists of deployments without pages, as some accounts see them."""
    creates: int = CREATES
    keys: dict[str, Mapping[str, str]] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    """What is said of a rental, by its id, instead of how it is, while it is paid for."""
    _ordered: list[float] = field(default_factory=list)

    def operation(self, request: Request, /) -> str:
        return next(
            (name for verb, path, name in ROUTES if verb == request.method and path.fullmatch(request.path)), ""
        )

    def failure(self, status: int, detail: str, retry_after_s: float | None = None, /) -> Answer:
        more = {} if retry_after_s is None else {"retryAfter": retry_after_s}
        return Answer(status, {"error": detail, "code": f"E{status}", "details": None, **more})

    def no_stock(self) -> Answer:
        return self.failure(400, "Not Enough Stock for the requested configuration")

    def answer(self, request: Request, operation: str, /) -> Answer:
        if request.headers.get("user-agent", "python").lower().startswith("python"):
            return self.failure(403, "Forbidden")
        if operation != "listOffers" and request.headers.get("authorization") != f"Bearer {KEY}":
            return self.failure(401, "Invalid API key")
        doing: Mapping[str, Callable[[Request], Answer]] = {
            "listOffers": self._offers,
            "balance": lambda _: Answer(200, {"teams": [TEAM]}),
            "listKeys": lambda _: Answer(200, list(self.keys.values())),
            "addKey": self._add_key,
            "listDeployments": self._deployments,
            "createDeployment": self._create,
        }
        if operation in doing:
            return doing[operation](request)
        with_one: Mapping[str, Callable[[Rental], Answer]] = {
            "getDeployment": lambda rental: Answer(200, self._shown(rental)),
            "deleteDeployment": self._delete,
            "canTerminate": self._can_terminate,
        }
        rental = self.account.rentals.get(request.path.split("/")[3]) if operation in with_one else None
        return with_one[operation](rental) if rental else self.failure(404, "Not found")

    def _add_key(self, request: Request) -> Answer:
        with self.account.lock:
            body = _body(request)
            key = {"id": f"key-{len(self.keys) + 1}", "name": str(body["name"]), "publicKey": str(body["publicKey"])}
            self.keys[key["id"]] = key
        return Answer(200, key)

    def _offers(self, request: Request) -> Answer:
        groups: dict[str, list[Stock]] = {}
        for each in self.stock:
            groups.setdefault(each.gpu_type, []).append(each)
        page, limit = int(request.query.get("page", 1)), min(int(request.query.get("limit", 10)), 3)
        shown = list(groups.items())[(page - 1) * limit : page * limit]
        data = [
            {
                "gpuType": gpu_type,
                "gpuModel": group[0].model,
                "displayName": group[0].name,
                "totalAvailable": len(group),
                "lowestPrice": min(each.price for each in group),
                "highestPrice": max(each.price for each in group),
                "averagePrice": sum(each.price for each in group) / len(group),
                "providers": sorted({each.provider for each in group}),
                "offers": [_sold(each) for each in group],
            }
            for gpu_type, group in shown
        ]
        pages = -(-len(groups) // limit)
        return Answer(200, {"data": data, "total": len(groups), "page": page, "limit": limit, "totalPages": pages})

    def _deployments(self, request: Request) -> Answer:
        shown = [self._shown(rental) for rental in list(self.account.rentals.values())]
        if self.bare_lists:
            return Answer(200, shown)
        page, limit = int(request.query.get("page", 1)), min(int(request.query.get("limit", 10)), 5)
        pages = max(1, -(-len(shown) // limit))
        data = shown[(page - 1) * limit : page * limit]
        return Answer(200, {"data": data, "total": len(shown), "page": page, "limit": limit, "totalPages": pages})

    def _create(self, request: Request) -> Answer:
        body = _body(request)
        with self.account.lock:
            now = self.account.clock()
            self._ordered = [at for at in self._ordered if at > now - CREATES_WITHIN_S]
            if len(self._ordered) >= self.creates:
                return self.failure(429, "Rate limit exceeded", self._ordered[0] + CREATES_WITHIN_S - now)
            self._ordered.append(now)
        stock = next((each for each in self.stock if each.offer_id == body.get("offerId")), None)
        key = self.keys.get(str(body.get("sshKeyId")))
        if not body.get("teamId") or key is None:
            return self.failure(400, "teamId and sshKeyId are required")
        coupled = stock and (stock.provider, stock.gpu_type, stock.gpus, True) == (
            body.get("provider"),
            body.get("gpuType"),
            body.get("gpuCount"),
            body.get("region") in stock.regions,
        )
        if stock is None or not coupled or body.get("operatingSystem") not in OPERATING_SYSTEMS:
            return self.failure(400, "The fields do not belong to one offer")
        spot = body.get("instanceType") == "SPOT"
        rate = stock.spot_price if spot else stock.price
        if stock.phantom or not stock.available or rate is None:
            return self.no_stock()
        rental = self.account.rent(
            str(body.get("name") or ""),
            rate,
            (key["publicKey"],),
            60.0 * stock.minimum_minutes,
            **{name: body[name] for name in ("provider", "gpuCount", "region", "instanceType", "sshKeyId")},
        )
        return Answer(200, self._shown(rental))

    def _shown(self, rental: Rental) -> dict[str, object]:
        reach = self.account.address(rental)
        if rental.ended is None:
            status = self.statuses.get(rental.id, "running" if self.account.booted(rental) else "deploying")
        else:
            status = "terminated-provider" if rental.taken_back else "terminated"
        return {
            "id": rental.id,
            "name": rental.name,
            **rental.details,
            "ipAddress": reach.address if reach else None,
            "user": reach.user if reach else None,
            "sshPort": reach.port if reach else None,
            "portForwards": [],
            "status": status,
            "startedAt": _iso(rental.began),
            "stoppedAt": None if rental.ended is None else _iso(rental.ended),
            "totalCost": rental.dollars(self.account.clock()),
            "hourlyRate": rental.rate,
            "createdAt": _iso(rental.began),
        }

    def _remaining(self, rental: Rental) -> float:
        """Minutes of the minimum that are left."""
        return max(0.0, rental.minimum_s - rental.seconds(self.account.clock())) / 60

    def _can_terminate(self, rental: Rental) -> Answer:
        left = self._remaining(rental)
        told = {
            "canTerminate": not left and rental.ended is None,
            "runtime": rental.seconds(self.account.clock()) / 60,
            "minimumRuntime": rental.minimum_s / 60,
            "timeRemaining": left,
        }
        return Answer(200, told)

    def _delete(self, rental: Rental) -> Answer:
        if rental.ended is not None:
            status = "terminated-provider" if rental.taken_back else "terminated"
            return Answer(400, {"error": "Already gone", "currentStatus": status, "canTerminate": False})
        if left := self._remaining(rental):
            told = {"canTerminate": False, "timeRemaining": left, "minimumRuntime": rental.minimum_s / 60}
            return Answer(400, {"error": "Minimum runtime not met", **told})
        self.account.end(rental)
        ended = {"id": rental.id, "status": "terminated", "stoppedAt": _iso(self.account.clock())}
        return Answer(200, {"message": "Deployment terminated", "deployment": ended})


OPERATING_SYSTEMS = ("Ubuntu 24.04", "Ubuntu 22.04 LTS", "Ubuntu 22.04 LTS + CUDA 12", "Debian 12")


def _body(request: Request) -> Mapping[str, object]:
    return cast("Mapping[str, object]", request.body) if isinstance(request.body, dict) else {}


def _sold(stock: Stock) -> dict[str, object]:
    return {
        "provider": stock.provider,
        "offerId": stock.offer_id,
        "name": stock.name,
        "vcpus": 24,
        "memory": 180,
        "storage": 500,
        "gpuCount": stock.gpus,
        "price": stock.price,
        "spot_price": stock.spot_price,
        "available": stock.available,
        "clusters": list(stock.regions),
        "gpu_memory": stock.memory,
        "os_options": list(OPERATING_SYSTEMS),
        "interconnectType": stock.interconnect,
        "instanceType": "DEDICATED",
        "supportsCloudInit": False,
        "maintenance": False,
        "minimumRuntimeMinutes": stock.minimum_minutes,
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
