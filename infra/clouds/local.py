"""This computer as a cloud: machines are folders, and cost nothing.

A machine lives as long as its folder has its name; both the making and the end of it are one rename, so
a command that dies on the way leaves a machine or none, never half of one. What runs on a machine is its
host's part (`LocalCloud.host`).
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra.clouds import Ability, CloudError, HostKind, Machine, MachineSpec, Market, Observed, Offer, Presence
from infra.hosts.local import LocalHost
from infra.paths import StackPaths

LOG = logging.getLogger(__name__)

CPU = "cpu"
GPU = re.compile(r"gpu-(\d+)")
REGION = "here"
DESCRIPTION = "machine.json"
MACHINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader")
NVIDIA_SMI_TIMEOUT_S = 20.0


def gpu_index(offer_id: str) -> int | None:
    """Which of this computer's GPUs an offer is, by nvidia-smi's count; None for the CPU."""
    found = GPU.match(offer_id)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class LocalCloud:
    """Machines under the stack's own folder; nothing of another stack is ever seen."""

    paths: StackPaths

    @property
    def name(self) -> str:
        return "local"

    @property
    def ability(self) -> Ability:
        return Ability(rents=False, markets=frozenset(Market), host=HostKind.LOCAL)

    def host(self, machine: Machine) -> LocalHost:
        """The host that runs units for the machine; the machine need not exist any more."""
        return LocalHost(machine.name, self._folder(machine.id), self.paths.logs)

    async def offers(self) -> Sequence[Offer]:
        """The CPU, as often as wanted, and each NVIDIA GPU once; in both markets, for nobody takes them back."""
        kinds = [(CPU, "", 0), *((f"gpu-{index}", model, 1) for index, model in await _gpus())]
        return [
            Offer(f"{kind}.{market}", self.name, market, model, count, REGION, price=0.0)
            for kind, model, count in kinds
            for market in Market
        ]

    async def find(self, name: str) -> Machine | None:
        return _read(self._folder(name))

    async def create(self, spec: MachineSpec) -> Machine:
        """Make the machine's folder. Raises CloudError if the name or the offer's GPU is taken."""
        gpu = gpu_index(spec.offer.id)
        holder = next((name for name, held in self._gpus_held().items() if held == gpu), None)
        if gpu is not None and holder is not None:
            raise CloudError(f"{spec.name}: GPU {gpu} of this computer is {holder}'s already; ask for fewer machines")
        machine = Machine(spec.name, spec.name, address="127.0.0.1")
        description = {"name": spec.name, "offer": spec.offer.id, "labels": dict(spec.labels)}
        if not _make(self._folder(spec.name), json.dumps(description, indent=2) + "\n"):
            raise CloudError(f"{spec.name}: a machine of this name is there already; look for it first")
        return machine

    async def look(self, machine_id: str) -> Observed:
        try:
            machine = _read(self._folder(machine_id))
        except OSError as error:
            return Observed(Presence.UNKNOWN, reason=f"{machine_id}: {error}")
        return Observed(Presence.THERE, machine) if machine else Observed(Presence.GONE)

    async def delete(self, machine_id: str) -> None:
        """End every unit of the machine, then let its folder go; gone is success."""
        folder = self._folder(machine_id)
        if not folder.exists():
            return
        host = self.host(Machine(machine_id, machine_id))
        for unit in await host.units():
            await host.remove(unit, lambda _: None)
        _bury(folder)

    async def list(self, stack_id: str) -> Sequence[Machine]:
        folders = sorted(self.paths.machines.glob("[!.]*")) if self.paths.machines.exists() else []
        return [machine for folder in folders if stack_id in folder.name and (machine := _read(folder))]

    def _folder(self, name: str) -> Path:
        if not MACHINE_NAME.fullmatch(name):
            raise CloudError(f"{name!r} cannot be a machine's name: letters, digits, dots, dashes, underscores")
        return self.paths.machines / name

    def _gpus_held(self) -> dict[str, int]:
        held = {}
        for description in self.paths.machines.glob(f"[!.]*/{DESCRIPTION}"):
            gpu = gpu_index(json.loads(description.read_text())["offer"])
            if gpu is not None:
                held[description.parent.name] = gpu
        return held


def _make(folder: Path, description: str) -> bool:
    """Put the machine's folder in place with its description; False if one is there."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    (draft / DESCRIPTION).write_text(description)
    try:
        draft.rename(folder)  # never onto another machine, whose folder is not empty
    except OSError as error:
        shutil.rmtree(draft)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _bury(folder: Path) -> None:
    grave = Path(tempfile.mkdtemp(prefix=".gone-", dir=folder.parent))
    with suppress(FileNotFoundError):  # somebody else deleted it meanwhile
        folder.rename(grave / folder.name)
    for left in folder.parent.glob(".gone-*"):  # ours, and those of commands that died here
        shutil.rmtree(left, ignore_errors=True)


def _read(folder: Path) -> Machine | None:
    try:
        (folder / DESCRIPTION).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Machine(folder.name, folder.name, address="127.0.0.1")


async def _gpus() -> list[tuple[int, str]]:
    """Index and model of each NVIDIA GPU; none where there is no driver, or it does not answer."""
    if not (program := shutil.which(NVIDIA_SMI[0])):
        return []
    process = await asyncio.create_subprocess_exec(
        program, *NVIDIA_SMI[1:], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(NVIDIA_SMI_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        output = b"no answer"
    if process.returncode != 0:
        LOG.warning("no GPU is offered: nvidia-smi failed: %s", output.decode(errors="replace").strip())
        return []
    return parse_gpus(output.decode())


def parse_gpus(listing: str) -> list[tuple[int, str]]:
    """`0, NVIDIA H100 80GB HBM3` a line."""
    pairs = (line.split(",", 1) for line in listing.splitlines() if "," in line)
    return [(int(index), model.strip()) for index, model in pairs]
