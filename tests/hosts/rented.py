"""A stack on machines that an emulated Spheron rents out: workers without torch, so that many come up on two cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from infra.clouds.spheron import API_KEY, API_URL
from infra.emulate.account import Account
from infra.emulate.hosts.rented import Hosts
from infra.emulate.machines import Order, Reach
from infra.emulate.server import Emulator, serving
from infra.emulate.spheron import KEY, SpheronApi, published
from tests.e2e.stack import UserStack

IMAGE = "registry.test/worker:1"
PACED = """\
import os, pathlib, sys
sys.path[:] = ["/srv/checkout", *(folder for folder in sys.path if "standin-docker" not in folder)]
del sys.modules["worker"]
token = pathlib.Path(os.environ["LETTERPRESS_WORKER_TOKEN_FILE"]).read_text()
sys.argv[1:] = ["--port", os.environ["LETTERPRESS_WORKER_PORT"], f"--token={token}"]
from tests.emulators.paced_worker import main
main()
"""
"""What the images of these machines run: a worker without torch, whose start takes a minute on a busy computer."""
STACK = """\
name: {name}
cloud: spheron
model: tiny
image: {{pull: "{image}"}}
router:
  edge: {{host: 127.0.0.1, port: {edge}}}
  admin: {{host: 127.0.0.1, port: {admin}}}
pools:
  interactive: {{machines: {interactive}, gpus: [H100-PCIe], first_port: {first}}}
  batch: {{machines: {batch}, market: spot, gpus: [A100-SXM-80GB], first_port: {second}}}
"""


@dataclass
class PacedHosts(Hosts):
    """Machines whose one image is a paced worker."""

    def start(self, order: Order, /) -> Reach:
        reach = super().start(order)
        self.machines[order.id].told(programs={IMAGE: PACED})
        return reach


@dataclass
class RentedStack(UserStack):
    """A user's stack, and whom it rents from. Its commands see that account."""

    emulator: Emulator = field(kw_only=True)

    def __post_init__(self) -> None:
        UserStack.__post_init__(self)
        self.environment |= {API_URL: self.emulator.url, API_KEY: KEY}

    @property
    def api(self) -> SpheronApi:
        api = self.emulator.api
        assert isinstance(api, SpheronApi)
        return api

    def describe(self, interactive: int, batch: int) -> None:
        edge, admin, first, _, second = self.ports
        counts = {"interactive": interactive, "batch": batch}
        ports = {"edge": edge, "admin": admin, "first": first, "second": second}
        self.file.write_text(STACK.format(name=self.name, image=IMAGE, **ports, **counts))

    def a_quarter_of_an_hour_later(self) -> None:
        """What was lately asked of the provider is forgotten, as it is by then."""
        (self.folder / "home/.clouds/spheron.json").unlink(missing_ok=True)


@contextmanager
def rented_stack(folder: Path, account: Account) -> Iterator[RentedStack]:
    """Not deployed yet; destroyed at the end whatever happened, and then its account is empty.

    The provider has no minimum run time here, and counts no orders: our own side does.
    """
    stock = [replace(each, minimum_minutes=0) for each in published()]
    with serving(SpheronApi(account, stock, creates=1000)) as emulator:
        stack = RentedStack(folder, emulator=emulator)
        try:
            yield stack
        finally:
            stack.letterpress("destroy", within_s=300)
        left = [rental.name for rental in account.alive()]
        assert left == [], f"still rented: {left}"
