"""Spheron (app.spheron.ai): virtual machines by the second, on demand and spot. All that is known of its API is here.

There is no SDK and no published description; the facts are from its documentation and from clients of others.
Assumed, and marked so below: that durations in refusals are minutes, and that a machine that failed or stopped is
paid for until it is given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

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
    TooEarlyError,
)
from infra.clouds.quota import Limit, Quota
from infra.clouds.wire import CREATES, REQUESTS, Reply, Wire, read_as, read_list, shown
from infra.costs.gpus import named

NAME = "spheron"
BASE = "https://app.spheron.ai"
API_KEY = "SPHERON_API_KEY"
API_URL = "SPHERON_API_URL"
"""Another base than Spheron's own: `letterpress emulate spheron` prints one."""
TEAM_ID = "SPHERON_TEAM_ID"

LIMITS = {REQUESTS: Limit(250, 900.0), CREATES: Limit(10, 900.0)}
"""Per address; the first few are left to whoever looks at the dashboard."""
BLOCKED_S = 900.0
"""How long an offer that was sold out is not offered."""
FRESH_S = 10.0
"""A list of machines so old answers once more: never ask more often, they say."""
PAGE = 100
USER = "ubuntu"
OFFERS = "/api/gpu-offers"

ALIVE = {"deploying": Phase.BOOTING, "running": Phase.RUNNING}
TAKEN_BACK = "terminated-provider"
"""The only sign of a lost spot machine; failed hardware shows it, too."""
GONE = {"terminated", TAKEN_BACK}
"""Nothing else says that a machine is no longer paid for."""
STOPPED = {"failed", "stopped"}
"""Still there, and paid for as far as anybody says (assumed): to be given back."""
INSTANCE_TYPES = {Market.ON_DEMAND: "DEDICATED", Market.SPOT: "SPOT"}
NO_STOCK = ("not enough stock", "out of stock", "no capacity", "insufficient")


class _Read(BaseModel):
    """Something that the API answers. It may tell more than we read."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class GpuOffer(_Read):
    provider: str
    offerId: str  # noqa: N815 - the API's own names, here and below
    name: str = ""
    gpuCount: int = Field(ge=0)  # noqa: N815
    price: float | None = None
    spot_price: float | None = None
    available: bool = False
    clusters: list[JsonValue] = Field(default_factory=list)
    gpu_memory: float | None = None
    os_options: list[str] = Field(default_factory=list)
    interconnectType: str | None = None  # noqa: N815
    instanceType: str | None = None  # noqa: N815
    maintenance: bool | None = None
    minimumRuntimeMinutes: float | None = None  # noqa: N815


class OfferGroup(_Read):
    gpuType: str  # noqa: N815
    gpuModel: str = ""  # noqa: N815
    displayName: str = ""  # noqa: N815
    offers: list[GpuOffer] = Field(default_factory=list)


class OfferPage(_Read):
    data: list[OfferGroup]
    totalPages: int = 1  # noqa: N815


class Deployment(_Read):
    id: str
    name: str | None = None
    status: str
    ipAddress: str | None = None  # noqa: N815
    user: str | None = None
    sshPort: int | None = None  # noqa: N815
    hourlyRate: float | None = None  # noqa: N815
    createdAt: datetime | None = None  # noqa: N815


class SshKey(_Read):
    id: str
    name: str = ""
    publicKey: str = ""  # noqa: N815


class Team(_Read):
    teamId: str  # noqa: N815
    isCurrentTeam: bool = False  # noqa: N815


class Balance(_Read):
    teams: list[Team]


class Refusal(_Read):
    """What a request that failed is told."""

    error: str = ""
    code: str | None = None
    currentStatus: str | None = None  # noqa: N815
    canTerminate: bool | None = None  # noqa: N815
    timeRemaining: float | None = None  # noqa: N815
    minimumRuntime: float | None = None  # noqa: N815


@dataclass(slots=True)
class _Snapshot:
    """The machines alive a moment ago, so that ten resources that look at once ask once."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    at: float = -1e9
    machines: tuple[Machine, ...] = ()


@dataclass(frozen=True, slots=True)
class SpheronCloud:
    wire: Wire
    team: str = ""
    fresh_s: float = FRESH_S
    clock: Callable[[], float] = time.monotonic
    _seen: _Snapshot = field(default_factory=_Snapshot, compare=False)
    _keys: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)

    @classmethod
    def of(cls, environ: Mapping[str, str], quota: Quota) -> SpheronCloud:
        """The account that the environment names; the key is read when it is used."""

        def key() -> str:
            if not environ.get(API_KEY):
                raise CloudError(
                    f"{API_KEY} is not set: make a key on {BASE} (settings, API keys) and give it in the environment"
                )
            return environ[API_KEY]

        base = environ.get(API_URL) or BASE
        return cls(Wire("Spheron", base, key, quota, public=frozenset({OFFERS})), environ.get(TEAM_ID, ""))

    @property
    def name(self) -> str:
        return NAME

    @property
    def ability(self) -> Ability:
        return Ability(
            rents=True,
            markets=frozenset(Market),
            host=HostKind.VM,
            cannot=(
                "say beforehand that a spot machine will be taken back",
                "be told to run something at first boot on most offers",
                "promise that what it lists is in stock",
            ),
        )

    async def offers(self) -> Sequence[Offer]:
        """What is for sale, without what turned out to be sold out a moment ago."""
        groups: list[OfferGroup] = []
        page, pages = 1, 1
        while page <= pages:
            reply = await self.wire.ask("GET", OFFERS, params={"page": page, "limit": PAGE})
            _require(reply, "its offers")
            answer = read_as(OfferPage, reply.data, "Spheron's list of offers")
            groups += answer.data
            pages = answer.totalPages
            page += 1
        blocked = await self.wire.quota.blocked()
        return [offer for group in groups for offer in _offers(group) if offer.id not in blocked]

    async def find(self, name: str) -> Machine | None:
        same = [machine for machine in await self._alive() if machine.name == name]
        return min(same, key=lambda machine: machine.rented_at or datetime.max.replace(tzinfo=UTC), default=None)

    async def create(self, spec: MachineSpec) -> Machine:
        terms = dict(spec.offer.terms)
        body: dict[str, JsonValue] = {
            "name": spec.name,
            "provider": terms["provider"],
            "offerId": terms["offerId"],
            "gpuType": terms["gpuType"],
            "gpuCount": spec.offer.gpus,
            "region": spec.offer.region,
            "operatingSystem": terms["operatingSystem"],
            "instanceType": INSTANCE_TYPES[spec.offer.market],
            "sshKeyId": await self._ssh_key(spec),
            "teamId": await self._team(),
        }
        try:
            reply = await self.wire.order("/api/deployments", body, spec.name)
        finally:
            self._forget()
        if not reply.ok:
            refusal = _refusal(reply)
            if reply.status == 400 and any(word in refusal.error.lower() for word in NO_STOCK):
                await self.wire.quota.block(spec.offer.id, BLOCKED_S)
                what = f"{spec.offer.gpu} in {spec.offer.region} ({spec.offer.market})"
                raise NoStockError(
                    f"{spec.name}: Spheron lists {what}, and has none: {refusal.error}. It is left aside for "
                    f"{BLOCKED_S / 60:.0f} minutes"
                )
            _require(reply, spec.name)
        try:
            return _machine(read_as(Deployment, _unwrapped(reply.data, "deployment"), f"{spec.name}'s deployment"))
        except CloudError as error:
            raise OutcomeUnknownError(str(error)) from None  # it was rented, whatever the answer looks like

    async def look(self, machine_id: str) -> Observed:
        try:
            known = next((machine for machine in await self._alive() if machine.id == machine_id), None)
            if known:
                return Observed(Presence.THERE, known)
            reply = await self.wire.ask("GET", f"/api/deployments/{machine_id}")
            if reply.status == 404:
                return Observed(Presence.GONE, reason="Spheron knows no such deployment")
            _require(reply, machine_id)
            found = read_as(Deployment, _unwrapped(reply.data, "deployment"), f"deployment {machine_id}")
        except CloudError as error:
            return Observed(Presence.UNKNOWN, reason=str(error))
        if found.status not in GONE:
            return Observed(Presence.THERE, _machine(found))
        taken = found.status == TAKEN_BACK
        return Observed(Presence.GONE, reason="taken back by Spheron" if taken else found.status, taken_back=taken)

    async def delete(self, machine_id: str) -> None:
        try:
            reply = await self.wire.ask("DELETE", f"/api/deployments/{machine_id}")
        finally:
            self._forget()
        if reply.ok or reply.status == 404:
            return
        refusal = _refusal(reply)
        status = refusal.currentStatus or ""
        if reply.status == 400 and status and status not in {*ALIVE, *STOPPED}:
            return
        if reply.status == 400 and refusal.canTerminate is False and refusal.timeRemaining is not None:
            until = datetime.now(UTC) + timedelta(minutes=refusal.timeRemaining)  # minutes: assumed
            raise TooEarlyError(
                f"{machine_id}: Spheron keeps it, and has it paid, for {refusal.timeRemaining:g} more minutes "
                f"(a minimum of {refusal.minimumRuntime or 0:g}), until {until:%H:%M:%S} UTC",
                until,
            )
        _require(reply, machine_id)

    async def list(self, stack_id: str) -> Sequence[Machine]:
        return [machine for machine in await self._alive() if machine.name.startswith(f"lp-{stack_id}-")]

    async def _alive(self) -> tuple[Machine, ...]:
        async with self._seen.lock:
            if self.clock() - self._seen.at >= self.fresh_s:
                self._seen.machines = await self._listed()
                self._seen.at = self.clock()
            return self._seen.machines

    async def _listed(self) -> tuple[Machine, ...]:
        """Answered as a bare list or in pages, by an account's age it seems."""
        found: list[Deployment] = []
        page, pages = 1, 1
        while page <= pages:
            reply = await self.wire.ask("GET", "/api/deployments", params={"page": page, "limit": PAGE})
            _require(reply, "its deployments")
            data = reply.data
            if isinstance(data, dict):
                total = data.get("totalPages")
                pages = total if isinstance(total, int) else 1
                data = data.get("data", data.get("deployments"))
            found += read_list(Deployment, data, "Spheron's list of deployments")
            page += 1
        return tuple(_machine(each) for each in found if each.status not in GONE)

    async def _ssh_key(self, spec: MachineSpec) -> str:
        """The id of the account's entry for the key; added if it is not there, and none is ever taken away."""
        if not spec.public_key:
            raise CloudError(f"{spec.name}: the stack has no SSH key; run `make deploy`, which makes one")
        async with self._keys:  # ten machines at once register it once
            reply = await self.wire.ask("GET", "/api/ssh-keys")
            _require(reply, "its SSH keys")
            keys = read_list(SshKey, _unwrapped(reply.data, "data"), "Spheron's list of SSH keys")
            wanted = spec.public_key.split()[:2]
            if known := next((key for key in keys if key.publicKey.split()[:2] == wanted), None):
                return known.id
            body: dict[str, JsonValue] = {"name": _key_name(spec.name), "publicKey": spec.public_key.strip()}
            added = await self.wire.ask("POST", "/api/ssh-keys", body)  # a second one would do no harm
            _require(added, "the stack's SSH key")
            return read_as(SshKey, _unwrapped(added.data, "data"), "the SSH key that was added").id

    async def _team(self) -> str:
        """Documented as optional, and wanted all the same."""
        if self.team:
            return self.team
        reply = await self.wire.ask("GET", "/api/balance")
        _require(reply, "its balance")
        teams = read_as(Balance, reply.data, "Spheron's balance").teams
        current = next((team for team in teams if team.isCurrentTeam), next(iter(teams), None))
        if current is None:
            raise CloudError(f"the account of {API_KEY} is in no team; make one on {BASE}, or name one by {TEAM_ID}")
        return current.teamId

    def _forget(self) -> None:
        self._seen.at = -1e9


def _offers(group: OfferGroup) -> Iterator[Offer]:
    for each in group.offers:
        if not each.available or each.maintenance or each.instanceType == "CLUSTER" or not each.gpuCount:
            continue
        system = _operating_system(each.os_options)
        if system is None:
            continue
        text = " ".join(filter(None, (group.gpuModel, group.displayName, each.name, each.interconnectType)))
        card = named(text or group.gpuType, each.gpu_memory or 0.0)
        prices = {Market.ON_DEMAND: each.price, Market.SPOT: each.spot_price}
        if each.instanceType == "SPOT":
            prices = {Market.SPOT: each.spot_price if each.spot_price is not None else each.price}
        for market, price in prices.items():
            if not price:
                continue
            for region in each.clusters:
                where = _region(region)
                yield Offer(
                    id=f"{each.provider}/{each.offerId}/{where}/{market}",
                    cloud=NAME,
                    market=market,
                    gpu=card or group.displayName or group.gpuType,
                    gpus=each.gpuCount,
                    region=where,
                    price=price,
                    memory_gib=each.gpu_memory or 0.0,
                    minimum_s=60 * (each.minimumRuntimeMinutes or 0.0),
                    terms=(
                        ("gpuType", group.gpuType),
                        ("offerId", each.offerId),
                        ("operatingSystem", system),
                        ("provider", each.provider),
                    ),
                )


def _region(cluster: JsonValue) -> str:
    """A name, or an object that has one."""
    if isinstance(cluster, dict):
        return str(cluster.get("id") or cluster.get("name") or cluster.get("region") or "")
    return str(cluster)


def _operating_system(options: Sequence[str]) -> str | None:
    """Ubuntu, 22.04 if there is a choice, one that brings the driver before one that does not."""

    def rank(option: str) -> tuple[bool, bool, str]:
        said = option.lower()
        return ("22.04" not in said and "2204" not in said, "cuda" not in said, option)

    return min((option for option in options if "ubuntu" in option.lower()), key=rank, default=None)


def _machine(found: Deployment) -> Machine:
    return Machine(
        id=found.id,
        name=found.name or "",
        address=found.ipAddress or "",
        port=found.sshPort or 22,
        user=found.user or USER,
        # A status that this version does not know is on its way to one that it does.
        phase=Phase.STOPPED if found.status in STOPPED else ALIVE.get(found.status, Phase.BOOTING),
        price=found.hourlyRate or 0.0,
        rented_at=found.createdAt,
    )


def _key_name(machine: str) -> str:
    """`lp-<stack's id>`: who looks at the account's keys sees whose it is."""
    return "-".join(machine.split("-")[:2])


def _unwrapped(data: JsonValue, name: str) -> JsonValue:
    return data[name] if isinstance(data, dict) and name in data else data


def _refusal(reply: Reply) -> Refusal:
    return read_as(Refusal, reply.data, "Spheron's refusal") if isinstance(reply.data, dict) else Refusal()


def _require(reply: Reply, what: str) -> None:
    """Raise CloudError, with what to do, for anything but a success."""
    if reply.ok:
        return
    said = _refusal(reply).error or shown(reply.data)
    match reply.status:
        case 401:
            problem = f"Spheron does not take {API_KEY} ({said}); make another on {BASE}"
        case 402:
            problem = f"Spheron says that the balance does not suffice ({said}); top it up on {BASE}"
        case 403:
            problem = f"Spheron forbids it ({said}): {API_KEY} may lack the right, or {TEAM_ID} name another's team"
        case _:
            problem = f"Spheron refuses ({reply.status}): {said}"
    raise CloudError(f"{what}: {problem}")
