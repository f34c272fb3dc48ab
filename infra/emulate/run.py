"""`letterpress emulate`: serves an emulated provider until it is interrupted, and says how to use it."""

from __future__ import annotations

import time
from dataclasses import replace

from infra.emulate.account import Account
from infra.emulate.server import serving
from infra.emulate.spheron import KEY, SpheronApi, published
from infra.view.console import say


def spheron(port: int, boot_s: float, minimum_minutes: int) -> None:
    """Until Ctrl-C; then the bill."""
    stock = [replace(each, minimum_minutes=minimum_minutes) for each in published()]
    with serving(SpheronApi(Account(boot_s=boot_s), stock), port) as emulator:
        say(f"Spheron, emulated, at {emulator.url}. In another terminal:")
        say(f"  export SPHERON_API_URL={emulator.url} SPHERON_API_KEY={KEY}")
        say("  make plan STACK=spheron")
        say(f"  curl -s {emulator.url}/emulator                                  # what is rented, and the bill")
        say(f"  curl -s -X POST '{emulator.url}/emulator/take-back?name=batch'   # lose the spot machines")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            for name, (seconds, dollars) in sorted(emulator.account.bill().items()):
                say(f"  {name}  {seconds:.0f} s  ${dollars:.4f}")
