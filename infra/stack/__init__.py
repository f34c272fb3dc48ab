"""stacks/*.yaml, typed: what a deployment is made of, and what is wrong with a file that does not say it.

Reading and checking only. Which offer each machine takes is `infra.planning.placement`'s, which resources come of
it `infra.planning.program`'s. `${NAME}` in a text stays a reference here; whoever uses the text resolves it then.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from infra.clouds import HostKind, Market
from infra.costs.gpus import GpuModel
from infra.paths import repository_root
from infra.stack.description import DescriptionError, read_yaml, say
from infra.state.backend import fault
from router.contract import PoolName
from worker.contract import MAX_SIDE, MIN_SIDE, SIDE_STEP, Metadata, Tier

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FOLDER_BEGINNINGS = ("/", "./", "../", "~", "${")
TINY = "tiny"
SIZE = re.compile(r"\d{1,4}x\d{1,4}")
SIDES = {"step": SIDE_STEP, "least": MIN_SIDE, "most": MAX_SIDE}


class CloudName(StrEnum):
    """Clouds that a stack can be on. Each has a module in `infra.clouds` and a line in `infra.provider.site`."""

    LOCAL = "local"
    SPHERON = "spheron"
    RUNPOD = "runpod"
    HOSTS = "hosts"


class Device(StrEnum):
    """What a pool's workers compute on. `auto` is the CPU for tiny weights and a GPU for all others."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


def _references_well_formed(text: str) -> str:
    if "${" in REFERENCE.sub("", text):
        raise PydanticCustomError("reference", "should hold references written as ${NAME}")
    return text


def _reference(text: str) -> str:
    if not REFERENCE.fullmatch(text):
        # Not shown: what stands there may be the secret itself.
        raise PydanticCustomError("secret", "should be a reference to the environment, ${NAME}: no secret stands here")
    return text


def _model(text: str) -> str:
    if text == TINY or REPOSITORY.fullmatch(text) or text.startswith(FOLDER_BEGINNINGS):
        return text
    raise PydanticCustomError(
        "model", "should be `tiny`, a repository (owner/name) or a folder (beginning with /, ./, ../ or ~)"
    )


def _loopback(text: str) -> str:
    try:
        loopback = text == "localhost" or ipaddress.ip_address(text).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise PydanticCustomError(
            "loopback", "should be a loopback address such as 127.0.0.1: the admin app is never public"
        )
    return text


def _backend(url: str) -> str:
    if wrong := fault(url):
        # As a secret: what stands there may hold one, and is not shown.
        raise PydanticCustomError("secret", "{wrong}", {"wrong": wrong})
    return url


Text = Annotated[str, StringConstraints(min_length=1), AfterValidator(_references_well_formed)]
"""May hold `${NAME}`; `resolve` puts the environment's value in."""
Reference = Annotated[str, AfterValidator(_reference)]
"""A secret: never in the file, always `${NAME}`."""
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:-]+$")]
Port = Annotated[int, Field(strict=True, ge=1, le=65_535)]


class Described(BaseModel):
    """A part of a stack file: nobody changes it, and a setting that does not exist is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Described):
    """HTTPS at the edge: by a certificate of your own, or by one that certbot gets and renews for `domain`."""

    certificate: Text | None = Field(None, description="File: the server's own certificate, then its chain, in PEM.")
    key: Text | None = Field(None, description="File: its private key, in PEM.")
    domain: Annotated[str, StringConstraints(pattern=r"^([a-z0-9-]{1,63}\.){1,8}[a-z]{2,63}$")] | None = Field(
        None,
        description="The name by which clients call the edge. certbot gets a certificate for it unless you have one.",
    )
    email: Text | None = Field(None, description="Where the authority writes to when a certificate runs out.")
    accept_terms: bool = Field(False, strict=True, description="Of the authority, Let's Encrypt: read and accepted.")
    plain_port: Port | None = Field(
        None, description="Plain HTTP, to send browsers on to HTTPS; default with certbot: 80, otherwise none."
    )

    @property
    def plain(self) -> int | None:
        """The port of plain HTTP. An authority asks on 80 and nowhere else (RFC 8555, 8.3)."""
        return self.plain_port or (None if self.certificate else 80)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        own = (self.certificate, self.key)
        if any(own) != all(own) or not (any(own) or self.domain):
            raise PydanticCustomError("tls", "should have certificate and key, or else a domain for certbot")
        if not any(own) and not self.accept_terms:
            raise PydanticCustomError(
                "tls", "should say `accept_terms: true`, once you have read https://letsencrypt.org/repository/"
            )
        return self


class Edge(Described):
    """Where the edge listens: the stack's one public address."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    tls: Tls | None = Field(None, description="HTTPS; without it the edge is for a network that you trust.")


class Admin(Described):
    """Where the admin app listens, on the router host's loopback."""

    host: Annotated[Host, AfterValidator(_loopback)] = "127.0.0.1"
    port: Port = 8081


def _cidr(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise PydanticCustomError("cidr", "should be a network such as 10.0.0.0/8, or an address") from None


Cidr = Annotated[str, AfterValidator(_cidr)]


class Bucket(Described):
    """An S3-compatible bucket for the images, which clients fetch from there by signed URLs that expire.

    More than one router host needs one: a folder of one host cannot be read on another.
    """

    bucket: Text
    prefix: Text | None = Field(None, description="A folder in the bucket; default: its root.")
    region: Text = "us-east-1"
    endpoint: Text | None = Field(None, description="Of a service that is not Amazon's: https://…")
    public_endpoint: Text | None = Field(None, description="Where clients reach the service, if not at `endpoint`.")
    access_key_id: Reference | None = Field(None, description="Default: the role of the router's machine.")
    secret_access_key: Reference | None = None

    @model_validator(mode="after")
    def _whole_key(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise PydanticCustomError("key", "should have both access_key_id and secret_access_key, or neither")
        return self


class Router(Described):
    """The router host: the router itself, and the edge in front of it."""

    edge: Edge = Edge()
    admin: Admin = Admin()
    s3: Bucket | None = Field(None, description="Keeps the images, instead of a folder of the router host.")
    webhook_allow: tuple[Cidr, ...] = Field(
        (), description="Addresses beside the public ones that webhooks may go to: 10.0.0.0/8. Only there by http."
    )


def _size(text: str) -> str:
    sides = [int(side) for side in text.split("x")] if SIZE.fullmatch(text) else []
    if not sides or any(not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_STEP for side in sides):
        raise PydanticCustomError("size", "should be WIDTHxHEIGHT, multiples of {step} from {least} to {most}", SIDES)
    return text


Size = Annotated[str, AfterValidator(_size)]


class Fallback(StrEnum):
    """What a spot pool does while no spot machine is to be had."""

    NONE = "none"  # waits for one
    ON_DEMAND = "on_demand"  # rents on demand meanwhile


class Scale(Described):
    """How far, and by what, `letterpress watch` changes the number of a pool's machines."""

    least: Annotated[int, Field(strict=True, ge=0, le=256)] = 0
    most: Annotated[int, Field(strict=True, ge=1, le=256)]
    wait_s: Annotated[float, Field(gt=0)] = Field(
        600.0, description="Seconds in which its machines should be through with all that waits; more rents more."
    )
    idle_s: Annotated[float, Field(ge=0)] = Field(
        900.0, description="Seconds without anything to do, after which a machine is given back."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise PydanticCustomError("scale", "should have `least` no greater than `most`")
        return self


Dollars = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _user(text: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text):
        raise PydanticCustomError("user", "should be a user's name on that machine")
    return text


class OwnHost(Described):
    """A machine that you have already, reached through SSH."""

    address: Host = Field(description="Its name or address.")
    port: Port = 22
    user: Annotated[str, AfterValidator(_user)] = Field("root", description="Anybody else needs sudo there.")
    key: Text | None = Field(None, description="A private key's file here; default: the stack's own key.")
    sudo_password: Reference | None = Field(None, description="What sudo asks of `user`; default: it asks nothing.")
    kind: Literal[HostKind.VM, HostKind.CONTAINER] = Field(
        HostKind.VM, description="vm: a machine with systemd. container: a pod that runs the worker's image as `host`."
    )
    gpus: Annotated[int, Field(strict=True, ge=0, le=16)] = Field(1, description="How many it has; one worker each.")
    gpu: Text | None = Field(None, description="Their model, as in H100: a deploy refuses another. Default: any.")
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = Field(None, description="Of one GPU, at the least.")
    disk_gib: Annotated[float, Field(gt=0)] = Field(60.0, description="Free for image and weights, at the least.")
    download_mbit_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="A deploy measures it, and refuses a machine that is slower than half of that."
    )
    worker_memory_gib: Annotated[float, Field(gt=0)] = Field(64.0, description="Main memory that one worker may take.")


class Image(Described):
    """Where machines get the worker's image from. Default: each builds it from this checkout."""

    pull: Text | None = Field(None, description="A registry's reference, best by digest: ghcr.io/acme/worker@sha256:…")
    username: Text | None = Field(None, description="For a registry that asks who pulls.")
    password: Reference | None = None
    archive: Text | None = Field(None, description="A file of `docker save`, which is copied to each machine.")
    base_image: Text | None = Field(None, description="Of an image that is built; see worker/Dockerfile.")
    torch_backend: Literal["cpu", "cu126", "cu128", "cu130"] | None = Field(None, description="Of one that is built.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [self.pull, self.archive, self.base_image or self.torch_backend]
        if sum(way is not None for way in ways) > 1:
            raise PydanticCustomError("image", "should have one of: pull, archive, or what a build is told")
        if (self.username is None) != (self.password is None) or (self.username and not self.pull):
            raise PydanticCustomError("image", "should have username and password together, and with pull")
        return self


class Pool(Described):
    """Workers of one kind of traffic."""

    machines: Annotated[int, Field(strict=True, ge=0, le=256)] = Field(description="How many machines it has.")
    market: Market = Field(Market.ON_DEMAND, description="How its machines are paid.")
    first_port: Port = Field(description="Its first worker listens here, on loopback; the next ones count up.")
    device: Device = Field(Device.AUTO, description="auto: the CPU for tiny weights, a GPU for all others.")
    tier: Tier = Field(
        Tier.EXACT,
        description="exact: the weights' own values. Faster and lossy: fp8 (Ada, Hopper), int8 (Ampere). "
        "nf4: exact and slower, in a third of the memory.",
    )
    warm_sizes: Annotated[tuple[Size, ...], Field(min_length=1)] = Field(
        ("1024x1024",), description="Made once before a worker is ready; the largest has to fit into its GPU's memory."
    )
    gpus: tuple[GpuModel, ...] = Field(
        (), description="Cards to rent, the most liked first; the cheapest image decides. Default: any that fits."
    )
    hosts: tuple[Text, ...] = Field((), description="Which of `hosts` it may have. Default: those left, in order.")
    gpus_per_machine: Annotated[int, Field(strict=True, ge=1, le=16)] = 1
    regions: tuple[Text, ...] = Field((), description="Where to rent, by the cloud's names. Default: anywhere.")
    max_price: Dollars | None = Field(None, description="US dollars an hour that one machine may cost.")
    fallback: Fallback = Field(Fallback.NONE, description="Of a spot pool: on_demand rents so while spot is sold out.")
    scale: Scale | None = Field(None, description="`machines` then says with how many it begins.")

    @property
    def most(self) -> int:
        """How many machines it may come to have."""
        return max(self.machines, self.scale.most) if self.scale else self.machines

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> Self:
        if self.scale and not self.scale.least <= self.machines <= self.scale.most:
            raise PydanticCustomError("scale", "should have `machines` within `scale`'s bounds")
        return self


class Serverless(Described):
    """An endpoint of RunPod's, beside the stack's own workers: it takes jobs itself, and costs nothing while idle."""

    image: Text = Field(description="The worker's image (docs/container.md), which runs as `serverless` there.")
    gpu_pools: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        description="RunPod's own pools of cards: AMPERE_80, ADA_80_PRO, HOPPER_141."
    )
    least: Annotated[int, Field(strict=True, ge=0, le=100)] = Field(0, description="Workers that are always there.")
    most: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    idle_s: Annotated[int, Field(strict=True, ge=1, le=3600)] = 10
    tier: Tier = Tier.EXACT
    hub_secret: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]*$")] = Field(
        "", description="The name of the RunPod secret that holds the hub's token; its value is never seen here."
    )
    volume_gb: Annotated[int, Field(strict=True, ge=10, le=4096)] = Field(60, description="Keeps the weights.")
    data_center: Text = Field(description="Where the volume is, and so the workers: EU-RO-1.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise PydanticCustomError("serverless", "should have `least` no greater than `most`")
        return self


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

    @property
    def remote(self) -> bool:
        """Whether its machines are reached through SSH."""
        return self.cloud is not CloudName.LOCAL

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
        yield "router.admin.port", self.router.admin.port
        for name, pool in self.pools.items():
            for index in range(pool.most * pool.gpus_per_machine):
                yield first_port_setting(name), pool.first_port + index


def first_port_setting(pool: str) -> str:
    """Where in the stack file a worker's port is changed."""
    return f"pools.{pool}.first_port"


def _at(path: str, port: int) -> dict[str, str | int]:
    return {"path": path, "port": port}


def parse(text: str, source: str, folder: Path) -> StackDescription:
    """Check the text of a stack file. `source` names it in errors; relative folders in it are under `folder`.

    Raises DescriptionError with one line for everything that is wrong.
    """
    document = read_yaml(text, source)
    try:
        description = StackDescription.model_validate(document.data)
    except ValidationError as error:
        raise DescriptionError(say(error, document, StackDescription)) from None
    return description.model_copy(
        update={
            "model": _anchored(description.model, folder),
            "cache": description.cache and _anchored(description.cache, folder),
            "router": _router_anchored(description.router, folder),
            "image": description.image.model_copy(
                update={"archive": description.image.archive and _anchored(description.image.archive, folder)}
            ),
        }
    )


def _router_anchored(router: Router, folder: Path) -> Router:
    tls = router.edge.tls
    if tls is None or tls.certificate is None or tls.key is None:
        return router
    files = {"certificate": _anchored(tls.certificate, folder), "key": _anchored(tls.key, folder)}
    edge = router.edge.model_copy(update={"tls": tls.model_copy(update=files)})
    return router.model_copy(update={"edge": edge})


def load(name_or_path: str, stacks: Path | None = None) -> StackDescription:
    """Read `stacks/<name>.yaml`, or the file at a path (it holds a slash or ends in .yaml)."""
    by_path = "/" in name_or_path or name_or_path.endswith((".yaml", ".yml"))
    folder = stacks or repository_root() / "stacks"
    path = Path(name_or_path).expanduser() if by_path else folder / f"{name_or_path}.yaml"
    try:
        text = path.read_text()
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise DescriptionError(f"there is no stack file {path}; the stacks here are: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DescriptionError(f"{path} cannot be read: {error}") from None
    description = parse(text, str(path), path.resolve().parent)
    if not by_path and description.name != name_or_path:
        # A copied file that kept its name would change the other stack's machines.
        raise DescriptionError(f"{path} says `name: {description.name}`; it should say `name: {name_or_path}`")
    return description


def with_model(description: StackDescription, model: str, folder: Path) -> StackDescription:
    """The same stack with other weights, as `MODEL=` asks; a relative folder is one under `folder`."""
    try:
        changed = StackDescription.model_validate(description.model_dump() | {"model": model})
    except ValidationError as error:
        raise DescriptionError(f"MODEL={model}: {error.errors()[0]['msg']}") from None
    return changed.model_copy(update={"model": _anchored(changed.model, folder)})


def resolve(text: str, environ: Mapping[str, str], setting: str) -> str:
    """Put the environment's values in place of `${NAME}`; `setting` says in an error where the text stands."""

    def value(match: re.Match[str]) -> str:
        if not environ.get(match[1]):
            raise DescriptionError(f"{setting}: {match[0]} refers to the environment, where {match[1]} is not set")
        return environ[match[1]]

    return REFERENCE.sub(value, text)


def json_schema() -> str:
    """The JSON Schema of stack files, as published in docs/stack.schema.json."""
    schema = StackDescription.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _anchored(text: str, folder: Path) -> str:
    """A relative folder as an absolute one; repositories, references and the rest as they are."""
    if text.startswith("~"):
        return str(Path(text).expanduser())
    return str((folder / text).resolve()) if text.startswith(("./", "../")) else text
