"""What a RouterHost is described by and what is kept of it, and how its edge and its admin app are called."""

from __future__ import annotations

from pydantic import Field

from infra.clouds import Access
from infra.provider.resource import Found, Inputs, UnitSeen

HTTPS = 443


class TlsInputs(Inputs):
    """HTTPS at the edge, by the user's `own` certificate (among the keys) or by certbot's for `domain`."""

    domain: str = ""
    email: str = ""
    own: bool
    plain_port: int | None = None


class RouterHostInputs(Inputs):
    """`host` is how its machine is reached, None for this computer. There `program` runs a router; elsewhere the wheel
    of this checkout does, in a folder that is named by `code`, the digest of the router's source.

    `keys` holds the fingerprints of the router's secrets by name. `settings` are the router's own (`router.settings`),
    by name without their prefix; no secret is among them. `tunnels` says that workers are reached through the tunnel
    service. `database` is PostgreSQL's URL without a password, empty for SQLite; `redis` is a URL, empty for none;
    `redis_port` is where the host runs one of its own, 0 for nowhere.
    """

    host: Access | None = None
    program: tuple[str, ...]
    code: str
    edge_host: str
    edge_port: int
    tls: TlsInputs | None = None
    admin_host: str
    admin_port: int
    keys: dict[str, str]
    settings: dict[str, str] = Field(default_factory=dict)
    tunnels: bool = False
    database: str = ""
    redis: str = ""
    redis_port: int = 0
    processes: int = 1
    consumers: int = 0


class RouterHostState(RouterHostInputs, Found):
    url: str = ""
    admin_url: str = ""
    units: tuple[UnitSeen, ...] = ()


def reachable_url(host: str, port: int, scheme: str = "http") -> str:
    """How this computer reaches a server that listens there; "everywhere" includes loopback."""
    match host:
        case "0.0.0.0":  # noqa: S104 - read from a description, not bound
            host = "127.0.0.1"
        case "::":
            host = "::1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def near_url(inputs: RouterHostInputs) -> str:
    """The edge as this computer reaches it, whoever else can."""
    everywhere = inputs.edge_host in ("0.0.0.0", "::")  # noqa: S104 - read, not bound
    host = inputs.host.address if inputs.host and everywhere else inputs.edge_host
    return reachable_url(host, inputs.edge_port, "https" if inputs.tls else "http")


def public_url(inputs: RouterHostInputs) -> str:
    """What clients call the edge by."""
    if inputs.tls is None or not inputs.tls.domain:
        return near_url(inputs)
    return f"https://{inputs.tls.domain}" + ("" if inputs.edge_port == HTTPS else f":{inputs.edge_port}")
