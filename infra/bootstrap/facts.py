"""What the machine is, against what was described: its GPUs and their driver, its disk, its way to the network.

Found out before anything is installed or downloaded: a machine that will not do is refused in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.bootstrap.machine import Machine
from infra.bootstrap.step import EVERYWHERE, NOTHING, Wrong
from infra.clouds import HostKind
from infra.ssh.connection import Done

MIB = 1.0 / 1024
DRIVER_MIN = 525
"""CUDA 12's oldest driver. A build of torch for CUDA 13, the ordinary one, wants 580."""
ENOUGH = 0.95
"""Cards report a little less memory than their name says."""
PROBE = "https://huggingface.co/Qwen/Qwen3-0.6B/resolve/main/model.safetensors"
ENOUGH_DISK, DOWNLOADS = "disk-was-enough", "downloads"
"""Files of the stack's folder that keep what was found."""
PROBE_S = 8
"""A download of a public file for so many seconds, of which nothing is kept."""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_gib: float
    driver: int


@dataclass(frozen=True, slots=True)
class Gpus:
    name: str = "GPUs"
    kinds: frozenset[HostKind] = EVERYWHERE

    def look(self, machine: Machine) -> str:
        query = "nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits 2>&1"
        return query if machine.described.gpus else NOTHING

    def judge(self, machine: Machine, seen: Done) -> Wrong | None:
        if seen.status != 0:
            said = (seen.said.splitlines() or ["it said nothing"])[-1]
            return Wrong(
                f"no NVIDIA driver answers (nvidia-smi: {said})",
                "Install the driver for its card (Ubuntu: sudo ubuntu-drivers install --gpgpu), restart the machine, "
                "and deploy again",
                final=True,
            )
        return judge(parse(seen.output), machine)

    async def act(self, machine: Machine) -> None:
        """Nobody but the machine's owner can."""


def parse(listing: str) -> tuple[Gpu, ...]:
    """`NVIDIA H100 80GB HBM3, 81559, 570.86.15` a line; memory in MiB."""
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.count(",") >= 2]
    return tuple(Gpu(name, float(memory) * MIB, int(driver.split(".")[0])) for name, memory, driver in rows)


def judge(found: tuple[Gpu, ...], machine: Machine) -> Wrong | None:
    """What is wrong with the GPUs that were found."""
    described = machine.described
    advice = "Mend the machine, or describe in the stack file what it has"
    if len(found) < described.gpus:
        return Wrong(f"{described.gpus} GPU(s) are described and {len(found)} answer", advice, final=True)
    for gpu in found[: described.gpus]:
        if described.gpu.lower() not in gpu.name.lower():
            return Wrong(f"{described.gpu} is described and it has {gpu.name}", advice, final=True)
        if gpu.memory_gib < described.gpu_memory_gib * ENOUGH:
            short = f"{described.gpu_memory_gib:g} GiB are described and {gpu.name} has {gpu.memory_gib:.0f}"
            return Wrong(short, advice, final=True)
        if gpu.driver < DRIVER_MIN:
            old = f"its NVIDIA driver {gpu.driver} is older than {DRIVER_MIN}"
            return Wrong(old, "Install a newer one, restart the machine, and deploy again", final=True)
    return None


@dataclass(frozen=True, slots=True)
class Disk:
    """Free space, as long as the image is not there: afterwards it is used for what was asked for."""

    name: str = "disk"
    kinds: frozenset[HostKind] = EVERYWHERE

    def look(self, machine: Machine) -> str:
        return (
            f"test -e {machine.root / ENOUGH_DISK} && echo enough && exit; "
            f"there={machine.root}; until test -e $there; do there=$(dirname $there); done; "
            "df -Pk $there | tail -1 | awk '{print $4}'"
        )

    def judge(self, machine: Machine, seen: Done) -> Wrong | None:
        said = seen.output.strip()
        if said == "enough":
            return None
        if not said.isdecimal():
            return Wrong("df does not say how much is free", FULL, final=True)
        free = int(said) / 2**20
        if free < machine.described.disk_gib:
            few = f"{free:.1f} GiB are free on {machine.root.parent}, and {machine.described.disk_gib:g} are wanted"
            return Wrong(few, "Free some, or say less in `disk_gib` if that is enough", final=True)
        return Wrong(f"{free:.0f} GiB free")

    async def act(self, machine: Machine) -> None:
        made = f"mkdir -p {machine.root} && chmod 711 {machine.root} {machine.root.parent}"
        await machine.connection.run(
            f"{made} && echo yes >{machine.root / ENOUGH_DISK}", "making its folder", advice=FULL
        )


FULL = "Is its disk full, or read-only? df -h"


@dataclass(frozen=True, slots=True)
class Download:
    """Measured only where a speed was described, and until it was once enough."""

    name: str = "download speed"
    kinds: frozenset[HostKind] = EVERYWHERE

    def look(self, machine: Machine) -> str:
        return f"cat {machine.root / DOWNLOADS} 2>/dev/null" if machine.described.download_mbit_s else NOTHING

    def judge(self, machine: Machine, seen: Done) -> Wrong | None:
        wanted = machine.described.download_mbit_s
        if not wanted:
            return None
        if seen.status != 0:
            return Wrong("measuring it")
        speed = bytes_a_second(seen.output) * 8e-6
        if speed < wanted / 2:
            slow = f"it downloads {speed:.0f} Mbit/s, and {wanted:g} are described"
            return Wrong(slow, "Take another machine, or say less in `download_mbit_s`")
        return None

    async def act(self, machine: Machine) -> None:
        probe = f"curl -sS -L -o /dev/null --max-time {PROBE_S} -w '%{{speed_download}}' {PROBE}"
        measure = f"{probe} >{machine.root / DOWNLOADS} || :"
        await machine.connection.run(measure, "measuring its download speed", within_s=60, advice=FULL)


def bytes_a_second(said: str) -> float:
    """As curl has it; 0 if it had nothing to say."""
    said = said.strip()
    return float(said) if said.replace(".", "", 1).isdecimal() else 0.0
