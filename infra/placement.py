"""Which offer each described machine takes: decided before the preview, and kept while it is valid.

A pure function of the description, what the clouds sell now, and what was decided before. A machine that
has to take another offer becomes a new generation of itself: another name, so that its predecessor is
never mistaken for it. Reading and writing the decision is all the I/O here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from infra.clouds import Offer
from infra.clouds.local import gpu_index
from infra.errors import InfraError
from infra.files import replace_file
from infra.stack import TINY, CloudName, Device, Pool, StackDescription


class PlacementError(InfraError):
    """No offer suits a described machine; the message says which and what to change."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One machine's place. `machine` is its name in the stack, such as `batch-1`; generations count from 1."""

    machine: str
    offer: Offer
    generation: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """A place for every machine of a stack."""

    machines: tuple[Placed, ...] = ()

    def of(self, machine: str) -> Placed | None:
        return next((placed for placed in self.machines if placed.machine == machine), None)


_JSON = TypeAdapter(Placement)


def machine_names(pool: str, count: int) -> tuple[str, ...]:
    return tuple(f"{pool}-{number}" for number in range(1, count + 1))


def wants_gpu(description: StackDescription, pool: Pool) -> bool:
    """Whether the pool's workers compute on a GPU: as it says, or else by the weights."""
    return pool.device is Device.GPU or (pool.device is Device.AUTO and description.model != TINY)


def devices(offer: Offer) -> tuple[str, ...]:
    """What the workers of a machine on this offer compute on, one worker each, as torch names it."""
    if not offer.gpus:
        return ("cpu",)
    here = gpu_index(offer.id) if offer.cloud == CloudName.LOCAL else None
    return (f"cuda:{here}",) if here is not None else tuple(f"cuda:{index}" for index in range(offer.gpus))


def place(description: StackDescription, offers: Sequence[Offer], previous: Placement) -> Placement:
    """Choose an offer for every machine. Raises PlacementError if one goes without.

    First every machine keeps what it had, if that is still offered and still suits; then those without
    take the cheapest that is left.
    """
    offered = {offer.id: offer for offer in offers}
    taken: set[str] = set()
    kept: dict[str, Placed] = {}
    for machine, pool in _machines(description):
        before = previous.of(machine)
        if before is None or before.offer.id not in offered or not _suits(before.offer, description, pool):
            continue
        if not taken.isdisjoint(_exclusive(before.offer)):
            continue
        taken.update(_exclusive(before.offer))
        kept[machine] = before
    placed = []
    for machine, pool in _machines(description):
        if machine in kept:
            placed.append(kept[machine])
            continue
        free = [o for o in offers if _suits(o, description, pool) and taken.isdisjoint(_exclusive(o))]
        if not free:
            raise PlacementError(_no_offer(description, offers))
        offer = min(free, key=lambda offer: (offer.price, offer.id))
        taken.update(_exclusive(offer))
        before = previous.of(machine)
        placed.append(Placed(machine, offer, before.generation + 1 if before else 1))
    return Placement(tuple(placed))


def read_placement(file: Path) -> Placement:
    """What was decided before; nothing, if there is no file."""
    try:
        return _JSON.validate_json(file.read_bytes())
    except FileNotFoundError:
        return Placement()
    except ValidationError as error:
        raise PlacementError(f"{file} is not a placement ({error.error_count()} errors); restore it") from error


def write_placement(file: Path, placement: Placement) -> None:
    """Keep the decision; a reader sees the old one or the new one, whole."""
    replace_file(file, _JSON.dump_json(placement, indent=2) + b"\n")


def _machines(description: StackDescription) -> Iterator[tuple[str, Pool]]:
    for name, pool in description.pools.items():
        for machine in machine_names(name, pool.machines):
            yield machine, pool


def _suits(offer: Offer, description: StackDescription, pool: Pool) -> bool:
    return (
        offer.cloud == description.cloud
        and offer.market == pool.market
        and bool(offer.gpus) == wants_gpu(description, pool)
    )


def _exclusive(offer: Offer) -> tuple[str, ...]:
    """What no two machines can have: a GPU of this computer, in whichever market. Clouds have stock."""
    index = gpu_index(offer.id) if offer.cloud == CloudName.LOCAL else None
    return () if index is None else (f"gpu-{index}",)


def _no_offer(description: StackDescription, offers: Sequence[Offer]) -> str:
    wanting = [(name, pool) for name, pool in description.pools.items() if wants_gpu(description, pool)]
    wanted = sum(pool.machines for _, pool in wanting)
    there = len({key for offer in offers for key in _exclusive(offer)})
    settings = ", ".join(f"`pools.{name}.machines`" for name, pool in wanting if pool.machines)
    return (
        f"stack {description.name}: {description.model} wants a GPU for each of {wanted} machine(s), and this computer "
        f"offers {there}. Lower {settings}, or take STACK=gpu, which describes one machine; MODEL=tiny needs no GPU"
    )
