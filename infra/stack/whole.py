"""A stack file as a whole: its parts, and what has to hold between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from infra.stack.machines import Image, OwnHost
from infra.stack.pools import Pool, Serverless
from infra.stack.router import HERE, Router
from infra.stack.words import CloudName, Described, Dollars, Text
from infra.state.backend import fault
from router.contract import PoolName
from worker.contract import Metadata, Tier

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FOLDER_BEGINNINGS = ("/", "./", "../", "~", "${")
TINY = "tiny"


def _model(text: str) -> str:
    if text == TINY or REPOSITORY.fullmatch(text) or text.startswith(FOLDER_BEGINNINGS):
        return text
    raise PydanticCustomError(
        "model", "should be `tiny`, a repository (owner/name) or a folder (beginning with /, ./, ../ or ~)"
    )


def _backend(url: str) -> str:
    if wrong := fault(url):
        # As a secret: what stands there may hold one, and is not shown.
        raise PydanticCustomError("secret", "{wrong}", {"wrong": wrong})
    return url


class StackDescription(Described):
    """One stack file."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")] = Field(
        description="Small letters, digits and dashes; names the folder of its run-time state."
    )
    cloud: CloudName = Field(CloudName.LOCAL, description="Who rents the machines out; local is this computer.")
    model: Annotated[Text, AfterValidator(_model)] = Field(
        description="`tiny` (random weights, pictures are noise), a repository of the hub, or a folder."
    )
    accept_license: bool = Field(
        False,
        strict=True,
        description="Say true once you have read and accepted the licence of `model` on its page; gated weights are "
        "not downloaded before.",
    )
    engine: Literal["fast", "reference"] = Field(
        "fast", description="How a worker makes images: the fast engine, or diffusers' own pipeline, untouched."
    )
    metadata: Metadata = Field(
        Metadata.ALL,
        description="What each image file says of how it was made: all, settings (without prompt and caption), none.",
    )
    blocked_share: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="How much of a picture must be one grey for a worker to suspect that the weights refused to draw "
        "it; 0 suspects nothing. Default: the worker's own, 0.8.",
    )
    state: Annotated[str, AfterValidator(_backend)] | None = Field(
        None,
        description="Where the stack's state and its bundle of keys are kept: file:///folder, s3://bucket/folder?region=…"
        " (of another service: &endpoint=https://…&use_path_style=true), https://api.pulumi.com. Credentials come from "
        "the environment. Default: the stack's own folder. LETTERPRESS_STATE overrides it.",
    )
    cache: Text | None = Field(None, description="Folder for weights on each machine; default: the worker's own.")
    pod_image: Text | None = Field(
        None, description="The worker's image, of clouds whose machines are containers (docs/container.md, target pod)."
    )
    budget_per_hour: Dollars | None = Field(
        None,
        description="US dollars an hour that all its machines together may cost; no deploy and no watch exceeds it.",
    )
    lives_for_hours: Dollars | None = Field(
        None, description="After so long `letterpress watch` gives everything back; a stack of an experiment."
    )
    hosts: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")], OwnHost] = Field(
        {}, description="Of `cloud: hosts`: the machines that you have, by names of your own."
    )
    image: Image = Field(Image(), description="The worker's container image, for machines reached through SSH.")
    router: Router = Router()
    serverless: dict[PoolName, Serverless] = Field({}, description="By name; RUNPOD_API_KEY is the account's.")
    pools: Annotated[dict[PoolName, Pool], Field(min_length=1)] = Field(description="By name.")

    @model_validator(mode="after")
    def _hosts_are_there(self) -> Self:
        if bool(self.hosts) != (self.cloud is CloudName.HOSTS):
            raise PydanticCustomError("hosts", "should have `hosts` with `cloud: hosts`, and only then")
        for name, pool in self.pools.items():
            for host in pool.hosts:
                if host not in self.hosts:
                    raise PydanticCustomError(
                        "hosts", "should name in pools.{pool}.hosts one of its hosts", {"pool": name}
                    )
        return self

    @model_validator(mode="after")
    def _reference_is_exact(self) -> Self:
        tiers = [(f"pools.{name}.tier", pool.tier) for name, pool in self.pools.items()]
        for setting, tier in tiers:
            if self.engine == "reference" and tier is not Tier.EXACT:
                raise PydanticCustomError(
                    "tier",
                    "{path}: {tier} is the fast engine's; should be `exact` with `engine: reference`",
                    {"path": setting, "tier": tier.value},
                )
        return self

    @model_validator(mode="after")
    def _router_by_itself(self) -> Self:
        machine = self.router.host
        for name, host in self.hosts.items():
            if machine and (machine.address, machine.port) == (host.address, host.port):
                raise PydanticCustomError(
                    "hosts",
                    "should have for `router.host` a machine of its own: {address} is hosts.{name}, whose firewall "
                    "lets nothing in but SSH",
                    {"address": host.address, "name": name},
                )
        if machine and self.cloud is CloudName.LOCAL:
            raise PydanticCustomError(
                "hosts",
                "should have `router.host` with machines that it can reach: workers of `cloud: local` listen on this "
                "computer alone",
            )
        return self

    @property
    def remote(self) -> bool:
        """Whether its machines are reached through SSH."""
        return self.cloud is not CloudName.LOCAL

    @property
    def rented(self) -> bool:
        """Whether its machines are somebody's who takes money for them."""
        return self.cloud in (CloudName.SPHERON, CloudName.RUNPOD)

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        taken: dict[int, str] = {}
        for setting, port in self._ports():
            if port > 65_535:
                raise PydanticCustomError(
                    "port", "{path}: leaves no room, its last worker would listen on port {port}", _at(setting, port)
                )
            if port in taken:
                raise PydanticCustomError(
                    "port", "{path}: port {port} is already taken by {by}", _at(setting, port) | {"by": taken[port]}
                )
            taken[port] = setting
        return self

    def _ports(self) -> Iterator[tuple[str, int]]:
        yield "router.edge.port", self.router.edge.port
        if self.router.edge.tls and (plain := self.router.edge.tls.plain):
            yield "router.edge.tls.plain_port", plain
        for number in range(self.router.processes):
            yield "router.admin.port", self.router.admin.port + number
        if self.router.redis == HERE:
            yield "router.redis_port", self.router.redis_port
        for name, pool in self.pools.items():
            for index in range(pool.most * pool.gpus_per_machine):
                yield first_port_setting(name), pool.first_port + index


def first_port_setting(pool: str) -> str:
    """Where in the stack file a worker's port is changed."""
    return f"pools.{pool}.first_port"


def _at(path: str, port: int) -> dict[str, str | int]:
    return {"path": path, "port": port}
