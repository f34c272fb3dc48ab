"""Machines without hardware as what an emulated provider rents out."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field

from infra.emulate.hosts.machine import TestMachine, machine
from infra.emulate.hosts.namespace import NoMachinesError, namespace
from infra.emulate.machines import Order, Reach


def why_not() -> str:
    """What keeps this computer from having such machines; empty if nothing does."""
    try:
        with namespace():
            pass
        with machine("ssh-ed25519 AAAA nobody"):
            return ""
    except NoMachinesError as error:
        return str(error)


@dataclass
class Hosts:
    """Each order a machine of its own, which lets in whom the order names; a pod where the provider rents those."""

    user: str = "root"
    are_pods: bool = False
    machines: dict[str, TestMachine] = field(default_factory=dict)
    _stacks: dict[str, ExitStack] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, order: Order, /) -> Reach:
        stack = ExitStack()  # several boot at once: only what is written down is locked
        made = stack.enter_context(machine(order.keys[0], user=self.user, is_pod=self.are_pods))
        with self._lock:
            self.machines[order.id], self._stacks[order.id] = made, stack
        return Reach(made.address, made.port, self.user)

    def stop(self, machine_id: str, /) -> None:
        with self._lock:
            stack = self._stacks.pop(machine_id, None)
            self.machines.pop(machine_id, None)
        if stack:
            stack.close()
