"""The checks themselves: this computer, the stack's file and keys, its ports, its state, its machines."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from infra.clouds import runpod, spheron
from infra.doctor import Check, Finding, Surroundings, Verdict
from infra.edge.certificate import CertificateError, read_certificate
from infra.edge.nginx import find_certbot, find_nginx
from infra.engine.shelf import Shelf, ShelfError
from infra.errors import InfraError
from infra.hosts import HostError, Listen
from infra.hosts.local import LocalHost
from infra.hosts.ports import require_free
from infra.ssh.connect import connect
from infra.ssh.connection import Done
from infra.ssh.pins import Pins
from infra.ssh.target import Patience
from infra.stack import REPOSITORY, TINY, CloudName, Device, Pool, StackDescription, first_port_setting, resolve
from infra.stack.description import DescriptionError
from infra.stack.router import HERE
from infra.state import backend

HUB = "https://huggingface.co"
DISK_GIB = 5.0
ROUTER = "router.host"
"""What the router's machine is called among the targets."""
SKEW_S = 60.0
"""TLS, signatures of buckets and leases all compare clocks; S3 refuses after 15 minutes, certificates earlier."""
CERTIFICATE_DAYS = 14
ACCOUNTS = {CloudName.SPHERON: spheron.API_KEY, CloudName.RUNPOD: runpod.API_KEY}


async def tools(around: Surroundings) -> Sequence[Finding]:
    """Programs that a deploy runs; those that it installs by itself are a warning."""
    router = around.description.router
    tls = router.edge.tls
    wanted = [("the Pulumi engine", around.engine, Verdict.WARN, "`make deploy` fetches or builds it (minutes)")]
    if router.host is None:
        wanted.append(("nginx", find_nginx(), Verdict.WARN, "`make deploy` installs it where it may"))
    if around.targets or around.description.cloud is not CloudName.LOCAL:
        ssh = shutil.which("ssh")
        wanted.append(("ssh", Path(ssh) if ssh else None, Verdict.FAIL, "install OpenSSH's client"))
    if _gpus_here(around.description):
        names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
        compiler = next((found for name in names if (found := shutil.which(name))), None)
        todo = "apt-get install gcc libc6-dev python3-dev: without it the engine's kernels are plain and slower"
        wanted.append(("a C compiler", Path(compiler) if compiler else None, Verdict.WARN, todo))
    if tls and not tls.certificate and router.host is None:
        wanted.append(("certbot", find_certbot(), Verdict.FAIL, "install certbot, or name a certificate of your own"))
    return [
        Finding("tools", Verdict.OK, f"{name}: {found}")
        if found
        else Finding("tools", verdict, f"{name} is not here", todo)
        for name, found, verdict, todo in wanted
    ]


async def disk(around: Surroundings) -> Sequence[Finding]:
    root = next(folder for folder in (around.paths.root, *around.paths.root.parents) if folder.exists())
    free = shutil.disk_usage(root).free / 2**30
    if free < DISK_GIB:
        return [Finding("disk", Verdict.FAIL, f"{free:.1f} GiB are free in {root}", f"free at least {DISK_GIB:g} GiB")]
    return [Finding("disk", Verdict.OK, f"{free:.0f} GiB are free in {root}")]


async def keys(around: Surroundings) -> Sequence[Finding]:
    """References that the file makes, accounts that it needs, and who may read what lies here."""
    found = [
        Finding("keys", Verdict.FAIL, said, "export it, or change the stack file")
        for said in _missing_references(around)
    ]
    account = ACCOUNTS.get(around.description.cloud)
    if account and not around.environ.get(account):
        found.append(
            Finding("keys", Verdict.FAIL, f"{account} is not set", f"make a key in its console, export {account}")
        )
    found += [
        Finding("keys", Verdict.FAIL, f"{file} may be read by others", f"chmod 600 {file}")
        for file in sorted(around.paths.secrets.glob("*"))
        if file.is_file() and stat.S_IMODE(file.stat().st_mode) & 0o077
    ]
    return found or [Finding("keys", Verdict.OK, "everything that the stack file refers to is there")]


def _missing_references(around: Surroundings) -> Iterator[str]:
    bucket, tls = around.description.router.s3, around.description.router.edge.tls
    referred = {
        "model": around.description.model,
        "cache": around.description.cache,
        "router.database_password": around.description.router.database_password,
        "router.redis_password": around.description.router.redis_password,
        "router.s3.access_key_id": bucket and bucket.access_key_id,
        "router.s3.secret_access_key": bucket and bucket.secret_access_key,
        "router.edge.tls.certificate": tls and tls.certificate,
        "router.edge.tls.key": tls and tls.key,
    }
    image = around.description.image
    referred |= {
        "pod_image": around.description.pod_image,
        "image.username": image.username,
        "image.password": image.password,
        "image.archive": image.archive,
    }
    referred |= {f"serverless.{name}.image": each.image for name, each in around.description.serverless.items()}
    for name, host in around.description.hosts.items():
        referred |= {f"hosts.{name}.key": host.key, f"hosts.{name}.sudo_password": host.sudo_password}
    for setting, text in referred.items():
        try:
            if text:
                resolve(text, around.environ, setting)
        except DescriptionError as error:
            yield str(error)


async def licence(around: Surroundings) -> Sequence[Finding]:
    """Of the weights: a yes in the file, and a token to fetch them with."""
    model = around.description.model
    if model == TINY:
        return [Finding("licence", Verdict.OK, "tiny random weights have none")]
    if not REPOSITORY.fullmatch(model):
        return [Finding("licence", Verdict.OK, f"{model} is a folder: whoever put it there had it licensed")]
    found = []
    if not around.description.accept_license:
        said = f"nobody has said yes to the licence of {model} here"
        todo = f"read it on {HUB}/{model}; `accept_license: true` in the stack file"
        if around.description.remote:  # no machine is touched without it
            found.append(Finding("licence", Verdict.FAIL, said, todo))
        else:
            found.append(Finding("licence", Verdict.WARN, said, f"{todo}, or `letterpress weights pull`"))
    if not around.environ.get("HF_TOKEN"):
        todo = "accept the licence with your account, make a read token, export HF_TOKEN"
        found.append(Finding("licence", Verdict.WARN, "HF_TOKEN is not set; gated weights cannot be fetched", todo))
    return found or [Finding("licence", Verdict.OK, f"accepted for {model}, and a token is there")]


async def clock(around: Surroundings) -> Sequence[Finding]:
    """Against the hub's, if the stack needs anything from outside."""
    if around.description.model == TINY and around.description.cloud is CloudName.LOCAL:
        return [Finding("clock", Verdict.OK, "nothing outside of this computer compares clocks with it")]
    url = around.environ.get("HF_ENDPOINT", HUB)
    try:
        async with httpx.AsyncClient(timeout=10) as client:
            asked = time.time()
            answer = await client.head(url)
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (httpx.HTTPError, KeyError, ValueError):
        return [Finding("clock", Verdict.WARN, f"not compared: {url} gives no answer", "is this computer online?")]
    return [judged_clock("this computer", asked - theirs)]


def judged_clock(whose: str, ahead_s: float) -> Finding:
    if abs(ahead_s) <= SKEW_S:
        return Finding("clock", Verdict.OK, f"{whose}'s clock is right")
    how = "fast" if ahead_s > 0 else "slow"
    return Finding("clock", Verdict.FAIL, f"{whose}'s clock is {abs(ahead_s):.0f} s {how}", "timedatectl set-ntp true")


async def ports(around: Surroundings) -> Sequence[Finding]:
    """Those that the stack would listen on here; what it listens on already is its own."""
    host = LocalHost("router", around.paths.router, around.paths.logs)
    kept = [status.pid for status in (await host.units()).values() if status.pid]
    for folder in sorted(around.paths.machines.glob("*")):
        units = await LocalHost(folder.name, folder, around.paths.logs).units()
        kept += [status.pid for status in units.values() if status.pid]
    ours = {child for pid in kept for child in (pid, *_children(pid))}
    found = []
    for address in _listens(around.description):
        try:
            require_free(address, "the stack", ours)
        except HostError as error:
            found.append(Finding("ports", Verdict.FAIL, str(error), f"change `{address.setting}` in the stack file"))
    return found or [Finding("ports", Verdict.OK, "all that the stack listens on are free, or its own")]


def _listens(description: StackDescription) -> Iterator[Listen]:
    router = description.router
    edge, admin = router.edge, router.admin
    if router.host is not None:
        return  # a deploy looks there
    yield Listen(edge.host, edge.port, "router.edge.port")
    for number in range(router.processes):
        yield Listen(admin.host, admin.port + number, "router.admin.port")
    if router.redis == HERE:
        yield Listen("127.0.0.1", router.redis_port, "router.redis_port")
    if edge.tls and edge.tls.plain:
        yield Listen(edge.host, edge.tls.plain, "router.edge.tls.plain_port")
    if description.cloud is CloudName.LOCAL:
        for name, pool in description.pools.items():
            for index in range(pool.machines):
                yield Listen("127.0.0.1", pool.first_port + index, first_port_setting(name))


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


async def state(around: Surroundings) -> Sequence[Finding]:
    """Where it is kept, and whether that lets us in."""
    try:
        url = backend.wanted(around.description.state, around.environ, around.paths)
        backend.require(around.paths, url)
    except backend.BackendError as error:
        return [Finding("state", Verdict.FAIL, str(error))]
    if not backend.shared(url, around.paths):
        return [Finding("state", Verdict.OK, "in the stack's own folder")]
    if around.engine is None:
        return [Finding("state", Verdict.WARN, f"{url} was not asked: the Pulumi engine is not here yet")]
    try:
        await asyncio.to_thread(Shelf(around.description.name, around.engine, url).read)
    except ShelfError as error:
        todo = "see its credentials in the environment (AWS_ACCESS_KEY_ID, PULUMI_ACCESS_TOKEN), and its address"
        return [Finding("state", Verdict.FAIL, str(error), todo)]
    return [Finding("state", Verdict.OK, f"{url} answers")]


async def certificate(around: Surroundings) -> Sequence[Finding]:
    tls = around.description.router.edge.tls
    if tls is None or tls.certificate is None or tls.key is None:
        return []
    try:
        files = [Path(resolve(text, around.environ, "router.edge.tls")) for text in (tls.certificate, tls.key)]
        now = datetime.now(UTC)
        left = read_certificate(files[0], files[1], now).ends - now
    except (CertificateError, DescriptionError) as error:
        return [Finding("certificate", Verdict.FAIL, str(error))]
    if left < timedelta(days=CERTIFICATE_DAYS):
        return [Finding("certificate", Verdict.WARN, f"runs out in {left.days} days", "renew it, then deploy")]
    return [Finding("certificate", Verdict.OK, f"good for {left.days} days")]


async def driver(around: Surroundings) -> Sequence[Finding]:
    """Of this computer's GPUs, if workers are to compute on them."""
    wanted = _gpus_here(around.description)
    if not wanted:
        return [Finding("driver", Verdict.OK, "no worker computes on a GPU of this computer")]
    program = shutil.which("nvidia-smi")
    if program is None:
        todo = "install NVIDIA's driver, or MODEL=tiny"
        return [Finding("driver", Verdict.FAIL, "nvidia-smi is not here: no NVIDIA driver", todo)]
    query = ("--query-gpu=driver_version,name", "--format=csv,noheader")
    asked = await asyncio.create_subprocess_exec(
        program, *query, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asked.communicate()
    return [judged_driver(asked.returncode or 0, said.decode(errors="replace"), wanted)]


def _gpus_here(description: StackDescription) -> int:
    """How many of this computer's GPUs workers are to compute on."""
    if description.cloud is not CloudName.LOCAL:
        return 0
    return sum(pool.machines for pool in description.pools.values() if _wants_gpu(description, pool))


def _wants_gpu(description: StackDescription, pool: Pool) -> bool:
    return pool.device is Device.GPU or (pool.device is Device.AUTO and description.model != TINY)


def judged_driver(status: int, said: str, wanted: int) -> Finding:
    """What `nvidia-smi` said, a line a GPU."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if status != 0:
        last = lines[-1] if lines else f"it ended with {status}"
        return Finding("driver", Verdict.FAIL, f"nvidia-smi: {last}", "mend the driver; often a restart is enough")
    if len(lines) < wanted:
        todo = "lower `machines` of the pools"
        return Finding("driver", Verdict.FAIL, f"{len(lines)} GPU(s) are here, the stack wants {wanted}", todo)
    return Finding("driver", Verdict.OK, f"{len(lines)} GPU(s): {lines[0]}")


async def machines(around: Surroundings) -> Sequence[Finding]:
    """Those that are reached through SSH: whether they let us in, their clocks, their drivers."""
    found = await asyncio.gather(*(_machine(around, name) for name in around.targets))
    return [finding for findings in found for finding in findings]


async def _machine(around: Surroundings, name: str) -> Sequence[Finding]:
    # A host key is pinned by a deploy; here it is held against a copy of what is pinned so far.
    with TemporaryDirectory(prefix="letterpress-") as folder:
        pins = Path(folder) / around.description.name / "known_hosts"
        pins.parent.mkdir()
        with suppress(FileNotFoundError):
            shutil.copy(around.paths.known_hosts, pins)
        try:
            connection = await connect(around.targets[name], Pins(pins), lambda _: None, Patience())
        except InfraError as error:
            return [Finding("ssh", Verdict.FAIL, str(error))]
    try:
        asked = time.time()
        theirs = float(await connection.run("date +%s.%N", "reading its clock"))
        seen = await connection.attempt("command -v nvidia-smi >/dev/null && nvidia-smi -L", "looking for GPUs")
    except (InfraError, ValueError) as error:
        return [Finding("ssh", Verdict.FAIL, f"{name}: {error}")]
    finally:
        connection.close()
    return [
        Finding("ssh", Verdict.OK, f"{name}: lets {around.targets[name].user} in, who may become root"),
        judged_clock(name, theirs - asked),
        *([] if name == ROUTER else [_gpus(name, seen)]),
    ]


def _gpus(name: str, seen: Done) -> Finding:
    return (
        Finding("driver", Verdict.OK, f"{name}: {len(seen.output.splitlines())} GPU(s)")
        if seen.status == 0
        else Finding("driver", Verdict.WARN, f"{name}: nvidia-smi shows no GPU", "install NVIDIA's driver there")
    )


async def folders(around: Surroundings) -> Sequence[Finding]:
    """Whether the stack's folder can be written to by whoever asks."""
    root = next(folder for folder in (around.paths.root, *around.paths.root.parents) if folder.exists())
    if os.access(root, os.W_OK):
        return []
    return [Finding("folders", Verdict.FAIL, f"{root} cannot be written to", "do this as the user whose it is")]


CHECKS: tuple[tuple[str, Check], ...] = (
    ("tools", tools),
    ("folders", folders),
    ("disk", disk),
    ("keys", keys),
    ("licence", licence),
    ("certificate", certificate),
    ("clock", clock),
    ("ports", ports),
    ("state", state),
    ("driver", driver),
    ("ssh", machines),
)
