"""How soon `letterpress watch` notices that machines are lost, and how soon others are ordered in their place.

    python -m tests.load.watch_bench [spot|pool|stopped|meanwhile|silent ...]

The watch is a process of its own and looks at its own interval; the machines are an emulated Spheron's, and their
workers come up each time before the next loss, which falls anywhere between two looks. `noticed` is when watch says so,
`ordered` when the order of the last replacement arrives at the provider. Orders beyond the provider's limit would wait
for it: it is forgotten between two losses, as after a quarter of an hour. A machine that hangs is told of at once, and
replaced `SILENT_S` later (ADR 25).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx

from infra.emulate.account import Account, Rental
from infra.watch.decide import SILENT_S
from infra.watch.run import EVERY_S
from tests.hosts.rented import PacedHosts, RentedStack, rented_stack
from tests.load.rig import machine
from tests.waiting import eventually

LOSSES = 5
SETTLED_S, NOTICED_S, ORDERED_S = 240.0, 120.0, 360.0
TO_NOTICE_S, TO_ORDER_S = 30.0, 60.0


@dataclass
class Watching:
    """What a watch has said, and when (seconds since the epoch)."""

    lines: list[tuple[float, str]] = field(default_factory=list)

    def hear(self, words: Iterator[str]) -> None:
        for line in words:
            self.lines.append((time.time(), line.rstrip()))

    def noticed(self, machines: Sequence[str], since: float) -> float | None:
        """When it had said of each of them what is wrong."""
        found = {name: at for at, line in self.lines for name in machines if at >= since and f" {name} " in line}
        return max(found.values()) if len(found) == len(machines) else None


@contextmanager
def watching(stack: RentedStack) -> Iterator[Watching]:
    command = [*stack.words("watch"), "--every", str(EVERY_S)]
    with subprocess.Popen(
        command, env=stack.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, process_group=0
    ) as process:
        assert process.stdout
        heard = Watching()
        listener = threading.Thread(target=heard.hear, args=(iter(process.stdout.readline, ""),), daemon=True)
        listener.start()
        try:
            yield heard
        except BaseException:
            print("\n".join(line for _, line in heard.lines[-20:]), file=sys.stderr)
            raise
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(120)
            listener.join()


def all_serve(stack: RentedStack, machines: int) -> bool:
    """Whether the router has a ready worker of each machine that is rented, and no other."""
    alive = stack.emulator.account.alive()
    if len(alive) != machines:
        return False
    workers = httpx.get(f"http://127.0.0.1:{stack.ports[1]}/workers", trust_env=False).json()
    return len(workers) == machines and all(worker["health"] == "ready" for worker in workers)


def described(rental: Rental) -> str:
    """The machine's name in the stack."""
    return rental.name.split("-", 2)[2].rpartition("-g")[0]


def spot(stack: RentedStack) -> list[str]:
    return stack.emulator.account.take_back("-batch-1-")


def pool(stack: RentedStack) -> list[str]:
    return stack.emulator.account.take_back("-batch-")


def stopped(stack: RentedStack) -> list[str]:
    """The machine on demand is there no more, and its provider says that it failed."""
    account = stack.emulator.account
    (rental,) = (each for each in account.alive() if "-interactive-" in each.name)
    stack.api.statuses[rental.id] = "failed"
    account.machines.stop(rental.id)
    return [rental.name]


def meanwhile(stack: RentedStack) -> list[str]:
    """The second spot machine, while the replacement of the first is being brought up."""
    account, before = stack.emulator.account, time.time()
    account.take_back("-batch-1-")
    eventually(
        lambda: [each for each in account.alive() if each.began > before and "-batch-1-" in each.name],
        ORDERED_S,
        "the first is ordered",
    )
    return account.take_back("-batch-2-")


def silent(stack: RentedStack) -> list[str]:
    """A spot machine's cable is pulled, and its provider says that it runs."""
    hosts = stack.emulator.account.machines
    assert isinstance(hosts, PacedHosts)
    (rental,) = (each for each in stack.emulator.account.alive() if "-batch-2-" in each.name)
    hosts.machines[rental.id].network.pull_the_cable()
    return [rental.name]


KINDS: dict[str, tuple[str, Callable[[RentedStack], list[str]]]] = {
    "spot": ("a spot machine is taken back", spot),
    "pool": ("the whole spot pool (2) is taken back", pool),
    "stopped": ("a machine stops, and is `failed`", stopped),
    "silent": ("a machine hangs, and its cloud says it runs", silent),
    "meanwhile": ("another, while the first's is set up", meanwhile),
}


def once(stack: RentedStack, heard: Watching, lose: Callable[[RentedStack], list[str]]) -> tuple[float, float]:
    """Seconds from the loss to watch's word, and to the last order."""
    account = stack.emulator.account
    eventually(lambda: all_serve(stack, 3), SETTLED_S, "all serve", every_s=0.5)
    stack.a_quarter_of_an_hour_later()
    time.sleep(random.uniform(0.0, EVERY_S))  # anywhere between two looks
    begun = time.time()
    names = lose(stack)
    rentals = [rental for rental in account.rentals.values() if rental.name in names]
    at, lost = min(rental.ended or begun for rental in rentals), [described(rental) for rental in rentals]
    noticed = eventually(lambda: heard.noticed(lost, at), NOTICED_S, "watch says that it is lost", every_s=0.02)

    def ordered() -> float | None:
        new = {described(rental): rental.began for rental in account.rentals.values() if rental.began >= at}
        return max(new[name] for name in lost) if set(lost) <= set(new) else None

    ordered_at = eventually(ordered, ORDERED_S, "others are ordered", every_s=0.02)
    return noticed - at, ordered_at - at


def told(seconds: Sequence[float]) -> str:
    return f"{min(seconds):5.1f} {median(seconds):5.1f} {max(seconds):5.1f}"


def main(kinds: Sequence[str]) -> None:
    print(f"{machine()}; a look each {EVERY_S:g} s; {LOSSES} losses each; seconds, min median max")
    with TemporaryDirectory(prefix="lp-") as folder, rented_stack(Path(folder), Account(PacedHosts())) as stack:
        stack.describe(interactive=1, batch=2)
        stack.letterpress("deploy", "--yes", within_s=300)
        with watching(stack) as heard:
            for kind in kinds:
                what, lose = KINDS[kind]
                seen = [once(stack, heard, lose) for _ in range(LOSSES)]
                noticed, ordered = [first for first, _ in seen], [second for _, second in seen]
                to_order = TO_ORDER_S + (SILENT_S if kind == "silent" else 0.0)
                within = max(noticed) <= TO_NOTICE_S and max(ordered) <= to_order
                print(
                    f"{what:42} noticed {told(noticed)}   ordered {told(ordered)}   {'within' if within else 'BEYOND'} "
                    f"{TO_NOTICE_S:g} and {to_order:g}",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:] or list(KINDS))
