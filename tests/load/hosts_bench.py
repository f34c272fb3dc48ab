"""How long ten machines take beside one, and how long ten take with which nothing is wrong.

    python -m tests.load.hosts_bench [MACHINES]

Machines are emulated on this computer (`infra.emulate.hosts`): real are each one's sshd, firewall, disk, processes and
every command that is run there, the tunnels, the router and its edge. Emulated are Docker, systemd and NVIDIA's tools,
and the worker, which is paced and without torch. What takes a machine of its own minutes without taking this computer
anything (packages, an image's layers, weights) takes no time here at all: what is compared is our own part. Both share
this computer's cores, and what was used of them is printed beside.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.integration.infra.hosts_rig import HostsRig, hosts_rig

UNCHANGED_S = 15


def cpu_s() -> float:
    """Seconds of all cores that were not idle, since the computer started."""
    user, nice, system, _, _, irq, soft, *_ = (int(word) for word in Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def own_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def took(rig: HostsRig, what: str) -> float:
    begun, busy, own = time.monotonic(), cpu_s(), own_s()
    await rig.up()
    wall = time.monotonic() - begun
    print(
        f"{what:34} {wall:6.1f} s   (all processes {cpu_s() - busy:6.1f} s of {os.cpu_count()} cores, "
        f"of that the deploy itself {own_s() - own:5.1f} s)",
        flush=True,
    )
    if rig.failed:
        raise RuntimeError("\n".join(rig.failed.values()))
    return wall


def _reached(seconds: float, bound: float) -> str:
    return "reached" if seconds <= bound else "not reached"


async def main(count: int) -> None:
    with TemporaryDirectory(prefix="lp-") as folder:
        async with hosts_rig(Path(folder), 1) as rig:
            one = await took(rig, "1 machine, bare")
    with TemporaryDirectory(prefix="lp-") as folder:
        async with hosts_rig(Path(folder), count) as rig:
            many = await took(rig, f"{count} machines, bare")
            nothing = await took(rig, f"{count} machines, nothing to change")
    bound = 1.3 * one + 10
    print(
        f"{count} machines beside one: {many:.1f} s, {many / one:.2f} times as long; to reach {bound:.1f} s (1.3 times "
        f"one and 10 s): {_reached(many, bound)}"
    )
    print(f"nothing to change: {nothing:.1f} s, to reach {UNCHANGED_S} s: {_reached(nothing, UNCHANGED_S)}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
