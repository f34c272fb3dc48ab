"""What becomes of an emulated machine that is ended while it still comes up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from infra.emulate.account import Account
from infra.emulate.machines import Order, Reach

WITHIN_S = 10.0


@dataclass
class Slow:
    """Machines that come up once they are let, whatever happens meanwhile."""

    begun: threading.Event = field(default_factory=threading.Event)
    let: threading.Event = field(default_factory=threading.Event)
    up: set[str] = field(default_factory=set)

    def start(self, order: Order, /) -> Reach:
        self.begun.set()
        assert self.let.wait(WITHIN_S)
        self.up.add(order.id)
        return Reach("192.0.2.1", 22, "root")

    def stop(self, machine_id: str, /) -> None:
        self.up.discard(machine_id)


def taken_back(account: Account) -> None:
    account.take_back()


@pytest.mark.parametrize("ended", [taken_back, Account.close])
def test_what_is_ended_while_it_comes_up_does_not_stay(ended: Callable[[Account], None]) -> None:
    machines = Slow()
    account = Account(machines)
    with ThreadPoolExecutor(2) as threads:
        rented = threads.submit(account.rent, "lp-abcdefgh-batch-1-g1", 1.0, ("ssh-ed25519 AAAA",))
        assert machines.begun.wait(WITHIN_S)
        ending = threads.submit(ended, account)
        if ended is taken_back:
            ending.result(WITHIN_S)
        machines.let.set()
        ending.result(WITHIN_S)
        rented.result(WITHIN_S)
    assert account.alive() == []
    assert machines.up == set()
