"""What Spheron's API answers, as far as it is read, and what its words mean. All known facts of it are in this package.

There is no SDK and no published description; the facts are from its documentation and from clients of others.
Assumed, and marked so: that durations in refusals are minutes, and that a machine that failed or stopped is paid for
until it is given back.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from infra.clouds import CloudError, Machine, Market, Phase
from infra.clouds.account import refused
from infra.clouds.quota import Limit
from infra.clouds.wire import CREATES, REQUESTS, Reply, read_as, shown

NAME = "spheron"
BASE = "https://app.spheron.ai"
API_KEY = "SPHERON_API_KEY"
API_URL = "SPHERON_API_URL"
"""Another base than Spheron's own: `letterpress emulate spheron` prints one."""
TEAM_ID = "SPHERON_TEAM_ID"
KEYS_ARE_MADE = f"on {BASE} (settings, API keys)"

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


def machine_of(found: Deployment) -> Machine:
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


def unwrapped(data: JsonValue, name: str) -> JsonValue:
    return data[name] if isinstance(data, dict) and name in data else data


def refusal_of(reply: Reply) -> Refusal:
    return read_as(Refusal, reply.data, "Spheron's refusal") if isinstance(reply.data, dict) else Refusal()


def require(reply: Reply, what: str) -> None:
    """Raise CloudError, with what to do, for anything but a success."""
    if reply.ok:
        return
    said = refusal_of(reply).error or shown(reply.data)
    problem = refused("Spheron", reply.status, said, API_KEY, KEYS_ARE_MADE)
    if reply.status == 403:
        problem += f", or {TEAM_ID} name another's team"
    raise CloudError(f"{what}: {problem}")
