"""`letterpress emulate`: serves an emulated provider until it is interrupted, and says how to use it."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import replace

from infra.emulate.account import Account
from infra.emulate.hosts.rented import Hosts, why_not
from infra.emulate.machines import Nowhere
from infra.emulate.server import serving
from infra.emulate.spheron import KEY, SpheronApi, published
from infra.view.console import say


def spheron(port: int, boot_s: float, minimum_minutes: int) -> None:
    """Until Ctrl-C; then the bill. Its machines can be reached where this computer lets us make some."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us deaf to Ctrl-C
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        _serve(port, boot_s, minimum_minutes)


def _serve(port: int, boot_s: float, minimum_minutes: int) -> None:
    """Its machines must not outlive it: whatever ends it, they are ended, and that is not interrupted."""
    stock = [replace(each, minimum_minutes=minimum_minutes) for each in published()]
    trouble = why_not()
    account = Account(Nowhere() if trouble else Hosts(), boot_s=boot_s)
    with serving(SpheronApi(account, stock), port) as emulator:
        say(f"Spheron, emulated, at {emulator.url}. In another terminal:")
        say(f"  export SPHERON_API_URL={emulator.url} SPHERON_API_KEY={KEY}")
        say("  make plan STACK=spheron")
        if trouble:
            say("  make preview STACK=spheron")
            say(f"Its machines cannot be reached: {trouble}. A deploy rents them, and ends where it would log in.")
        else:
            say("  make deploy STACK=spheron MODEL=tiny       # machines of this computer, workers on its CPU")
            say("  make watch STACK=spheron")
        say(f"  curl -s {emulator.url}/emulator                                  # what is rented, and the bill")
        say(f"  curl -s -X POST '{emulator.url}/emulator/take-back?name=batch'   # lose the spot machines")
        try:
            while True:
                signal.pause()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            for name, (seconds, dollars) in sorted(account.bill().items()):
                say(f"  {name}  {seconds:.0f} s  ${dollars:.4f}")
