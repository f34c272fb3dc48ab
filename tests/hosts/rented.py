"""Test machines as what an emulated provider rents out."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field

from infra.emulate.machines import Order, Reach
from tests.hosts.machine import TestMachine, machine


@dataclass
class TestHosts:
    """Each order a machine of its own, which lets in whom the order names."""

    __test__ = False

    user: str = "root"
    machines: dict[str, TestMachine] = field(default_factory=dict)
    _stacks: dict[str, ExitStack] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, order: Order, /) -> Reach:
        stack = ExitStack()
        with self._lock:
            made = stack.enter_context(machine(order.keys[0], user=self.user))
            self.machines[order.id], self._stacks[order.id] = made, stack
        return Reach(made.address, made.port, self.user)

    def stop(self, machine_id: str, /) -> None:
        with self._lock:
            stack = self._stacks.pop(machine_id, None)
            self.machines.pop(machine_id, None)
        if stack:
            stack.close()
