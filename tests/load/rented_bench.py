"""How long ten rented machines take to serve, beside the slowest of them alone.

    python -m tests.load.rented_bench [MACHINES]

`letterpress deploy` of a stack that an emulated Spheron rents out, from its first line to its first image: order, boot,
bootstrap over SSH, worker, registration. Each machine boots for another time, by waiting; what bringing it up costs the
cores is printed beside, for these machines share this computer's, and true ones have their own.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from infra.emulate.account import Account, Rental
from tests.hosts.rented import PacedHosts, rented_stack
from tests.load.hosts_bench import cpu_s
from tests.load.rig import machine

SLOWEST_S, APART_S = 60.0, 5.0


@dataclass(slots=True)
class Uneven(Account):
    """The first order boots for `SLOWEST_S`, each further one `APART_S` less."""

    def booted(self, rental: Rental) -> bool:
        number = list(self.rentals).index(rental.id)
        return self.clock() - rental.began >= max(0.0, SLOWEST_S - APART_S * number)


def took(what: str, interactive: int, batch: int) -> float:
    with TemporaryDirectory(prefix="lp-") as folder, rented_stack(Path(folder), Uneven(PacedHosts())) as stack:
        stack.describe(interactive, batch)
        begun, busy = time.monotonic(), cpu_s()
        stack.letterpress("deploy", "--yes", within_s=580)
        wall = time.monotonic() - begun
        workers = httpx.get(f"http://127.0.0.1:{stack.ports[1]}/workers", trust_env=False).json()
        ready = [worker for worker in workers if worker["health"] == "ready"]
        assert len(ready) == interactive + batch, f"{len(ready)} of {interactive + batch} serve"
        orders = stack.emulator.asked.count("createDeployment")
        print(f"{what:24} {wall:6.1f} s, {orders} orders, all processes {cpu_s() - busy:6.1f} s of CPU", flush=True)
        return wall


def main(count: int) -> None:
    print(f"{machine()}; the slowest machine boots for {SLOWEST_S:g} s")
    one = took("the slowest alone", 1, 0)
    many = took(f"{count} machines", count - count // 2, count // 2)
    print(
        f"{many / one:.2f} times the slowest; to reach {1.3 * one + 10:.1f} s (1.3 times and 10 s), took {many:.1f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
