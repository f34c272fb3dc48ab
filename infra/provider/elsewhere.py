"""Workers on machines that are reached through SSH: what such a machine is told, and its workers as units there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from infra import remains
from infra.bootstrap.access import comment
from infra.bootstrap.leave import IMAGES, leave_script
from infra.bootstrap.machine import Described, Machine, WantedImage, WantedWeights
from infra.bootstrap.order import WORKER_STEPS
from infra.bootstrap.step import go_through
from infra.bootstrap.weights import USER
from infra.clouds import Access, CloudError, HostKind
from infra.clouds import Machine as Rental
from infra.errors import InfraError
from infra.hosts import Listen, Progress, Service, Unit
from infra.hosts.container import ContainerHost
from infra.hosts.remote import stack_folder
from infra.hosts.ssh import SshHost, unit_prefix
from infra.provider import tunnels
from infra.provider.place import RouterPlace
from infra.provider.site import Site
from infra.ssh.connection import Connection
from infra.ssh.errors import HostKeyChangedError
from infra.ssh.keys import TUNNEL, ensure_key, public_line
from infra.ssh.target import Patience
from infra.stack import REPOSITORY, TINY, resolve
from router.contract import TunnelMachine, forward_only

TOKEN = "/run/letterpress-token"  # noqa: S105 - where it lies in the container
CACHE = "/cache"
HUB_TOKEN = "HF_TOKEN"  # noqa: S105 - the name of a variable
HUB_ENDPOINT = "HF_ENDPOINT"
STOP_GRACE_S = 120.0
"""A container is asked to end 5 s before: what runs is finished, and what is accepted gets 30 s to begin."""
LEAVE = Patience(reach_s=3.0)
"""For taking leave of a machine: one that does not answer keeps what is on it."""
LEAVE_S = 300.0
"""Workers may finish the image that they are at."""


class ImageInputs(BaseModel):
    """The image as described; `password` is a reference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tag: str
    pull: str = ""
    username: str = ""
    password: str = ""
    archive: str = ""
    build_args: dict[str, str] = {}


class MachineFacts(BaseModel):
    """What the machine was described to have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: int
    gpu: str = ""
    gpu_memory_gib: float = 0.0
    disk_gib: float = 0.0
    download_mbit_s: float = 0.0
    worker_memory_gib: float = 64.0


class Elsewhere(BaseModel):
    """How the machine of a WorkerHost is reached and what it should be; None of it on this computer.

    Where a rented machine will be, only its cloud knows, and not before it boots: then `access` has no address
    (`at` puts it in). `admin_url` is the admin app's on the loopback of the router's host; `router` is how that one is
    reached, None if it is this computer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    access: Access
    image: ImageInputs
    facts: MachineFacts
    admin_url: str
    router: Access | None = None

    @property
    def rented(self) -> bool:
        return not self.access.address

    def at(self, machine: Rental) -> Elsewhere:
        """With the address that the cloud has for the machine. Raises CloudError while it has none."""
        if not self.rented:
            return self
        if not machine.address:
            raise CloudError(f"{machine.name} boots, and has no address yet")
        there = replace(self.access, address=machine.address, port=machine.port, user=machine.user or "root")
        return self.model_copy(update={"access": there})


def host_of(
    site: Site, machine: str, access: Access, progress: Progress, patience: Patience
) -> SshHost | ContainerHost:
    """The host behind a machine's name, reached when something is first asked of it."""
    target = site.target(machine, access)

    async def connect() -> Connection:
        return await site.connections.to(target, progress, patience)

    kind = ContainerHost if access.kind is HostKind.CONTAINER else SshHost
    return kind(target.shown, site.stack_id, connect)


def token_file(worker: str) -> PurePosixPath:
    return PurePosixPath("secrets") / f"worker-token-{worker}"


def cache_of(site: Site, cache: str | None) -> PurePosixPath:
    return PurePosixPath(resolve(cache, site.environ, "cache")) if cache else stack_folder(site.stack_id) / "cache"


async def prepare(
    site: Site,
    machine: str,
    elsewhere: Elsewhere,
    model: str,
    cache: str | None,
    accepted: bool,
    ports: Mapping[str, int],
    progress: Progress,
) -> None:
    """Everything but the workers themselves. Raises StepError or SshError, with what to do."""
    access, image, facts = elsewhere.access, elsewhere.image, elsewhere.facts
    connection = await site.connections.to(site.target(machine, access), progress, Patience())
    remains.forget(site.paths, machine, access)  # it is the stack's again
    public = public_line(ensure_key(site.paths.secrets, TUNNEL), comment(site.stack_id))
    password = resolve(image.password, site.environ, "image.password") if image.password else ""
    repository = model if REPOSITORY.fullmatch(model) and model != TINY else ""
    await go_through(
        WORKER_STEPS,
        Machine(
            connection=connection,
            kind=access.kind,
            root=stack_folder(site.stack_id),
            cache=cache_of(site, cache),
            stack_id=site.stack_id,
            described=Described(**facts.model_dump(exclude={"worker_memory_gib"})),
            image=WantedImage(
                tag=image.tag,
                pull=image.pull,
                username=image.username,
                password=password,
                archive=Path(image.archive) if image.archive else None,
                build_args=tuple(sorted(image.build_args.items())),
            ),
            weights=WantedWeights(
                repository, accepted, site.environ.get(HUB_TOKEN, ""), site.environ.get(HUB_ENDPOINT, "")
            ),
            tunnel_line=forward_only(public, ports.values()),
            progress=progress,
        ),
    )
    way = way_to(machine, access, connection.host_key, ports)
    await tunnels.add(RouterPlace(site, elsewhere.router), way, progress)


def way_to(machine: str, access: Access, host_key: str, ports: Mapping[str, int]) -> TunnelMachine:
    """What the tunnel service is told of a machine."""
    return TunnelMachine(
        id=machine,
        host=access.address,
        port=access.port,
        user=access.user,
        host_key=host_key,
        workers=dict(ports),
    )


def remote_unit(
    name: str,
    settings: Mapping[str, str],
    device: str,
    listen: Listen,
    token: str,
    elsewhere: Elsewhere,
    site: Site,
    cache: str | None,
) -> Unit:
    """A worker as a unit of such a machine. `settings` are its own, without their prefix and but for its folders."""
    stack_id, site_cache, stop_grace = site.stack_id, cache_of(site, cache), STOP_GRACE_S
    root = stack_folder(stack_id)
    pod = elsewhere.access.kind is HostKind.CONTAINER
    model = settings["MODEL"]
    folder = model if model.startswith("/") else ""
    told = dict(settings)
    told["DEVICE"] = "cpu" if device == "cpu" else device if pod else "auto"
    told["TOKEN_FILE"] = str(root / token_file(name)) if pod else TOKEN
    told["CACHE_DIR"] = f"{site_cache}/letterpress" if pod else f"{CACHE}/letterpress"
    if folder and not pod:
        told["MODEL"] = "/model"
    environment = {f"LETTERPRESS_WORKER_{key}": value for key, value in told.items()}
    if REPOSITORY.fullmatch(model) and model != TINY:
        # They are here, and a restart must not depend on the hub.
        environment["HF_HUB_OFFLINE"] = "1"
    # A new token takes effect in a new process alone: so it is a part of what the unit is.
    marks = {"LETTERPRESS_TOKEN_FINGERPRINT": token}
    if pod:
        return Unit(
            name=name,
            argv=("letterpress-container", "server"),
            env=environment | {"HF_HOME": f"{site_cache}/huggingface"} | marks,
            listens=(listen,),
            stop_grace=stop_grace,
        )
    container = f"{unit_prefix(stack_id)}{name}"
    gpu = () if device == "cpu" else ("--gpus", f"device={device.removeprefix('cuda:')}")
    argv = (
        *("docker", "run", "--rm", "--name", container, "--network", "host", *gpu),
        *("--memory", f"{elsewhere.facts.worker_memory_gib:g}g", "--shm-size", "1g", "--log-driver", "none"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pull", "never"),
        *("-v", f"{root / token_file(name)}:{TOKEN}:ro", "-v", f"{site_cache}:{CACHE}"),
        *(("-v", f"{folder}:/model:ro") if folder else ()),
        *(word for key, value in sorted(environment.items()) for word in ("-e", f"{key}={value}")),
        *(elsewhere.image.tag, "server"),
    )
    return Unit(
        name=name,
        argv=argv,
        env=marks,
        listens=(listen,),
        stop_grace=stop_grace,
        service=Service(
            before=(("docker", "rm", "-f", container),),
            stop=("docker", "stop", "-t", f"{stop_grace - 5:.0f}", container),
            lines=("Environment=HOME=/root",),
        ),
    )


async def write_token(host: SshHost | ContainerHost, worker: str, token: str) -> None:
    """0600 and of the user whom the container runs as: the worker takes it no other way."""
    content = token.encode()
    if isinstance(host, ContainerHost):  # the worker is no root, and enters the folder itself: nothing is mounted
        folder = host.root / token_file(worker).parent
        script = f"mkdir -p {folder} && chmod 711 {folder}"
        await (await host.connect()).run(script, "making the folder of tokens")
    if await host.read(token_file(worker)) != content:
        await host.write(token_file(worker), content, 0o600, f"{USER}:{USER}")


async def take_leave(site: Site, machine: str, elsewhere: Elsewhere, progress: Progress) -> None:
    """Take everything of the stack off a machine, and forget the way to it."""
    await leave_machine(site, machine, elsewhere.access, progress, elsewhere.image.tag)
    await tunnels.remove(RouterPlace(site, elsewhere.router), machine, progress)


async def leave_machine(site: Site, machine: str, access: Access, progress: Progress, image: str = IMAGES) -> None:
    """Take everything of the stack off a machine that answers; what is left on one that does not is noted, and told
    of when the command ends (`infra.remains`). `image` is what its workers ran, where that is known."""
    script = leave_script(site.stack_id, access.user, access.kind, image)
    try:
        connection = await site.connections.to(site.target(machine, access), progress, LEAVE)
        progress("taking everything of the stack off it")
        await connection.run(script, "taking leave", within_s=LEAVE_S)
    except InfraError as error:  # a secret of the user's may be missing, too: whatever it is, the stack goes
        progress("left as it is")
        remains.note(site.paths, machine, access, str(error), script)
    else:
        remains.forget(site.paths, machine, access)


async def leave_if_moved(site: Site, machine: str, before: Elsewhere, now: Elsewhere, progress: Progress) -> None:
    """Where the description names another address: if another machine answers there, leave the one that was used.

    The same host key is the same machine under a new address, and nothing is taken off it. Raises HostError if the
    new address does not answer: then the old one is still what is remembered.
    """
    old, new = before.access, now.access
    if (old.address, old.port) == (new.address, new.port):
        return
    try:
        await site.connections.to(site.target(machine, new), progress, Patience())
    except HostKeyChangedError:
        progress(f"{new.address} is another machine than {old.address}, which is left")
        await take_leave(site, machine, before, progress)
        site.forget_host_key(machine)
