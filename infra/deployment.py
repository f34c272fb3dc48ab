"""A stack as commands see it: its description, its folder, and what is remembered of it between them.

What was deployed last is kept beside the state, so that looking at a stack, or ending it, never depends
on a file that somebody has edited or removed since. What it consists of is `infra.planning.planner`'s.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from infra.endpoint import Endpoint
from infra.files import replace_file
from infra.paths import StackPaths
from infra.planning.program import database_url, router_access
from infra.provider.place import RouterPlace
from infra.provider.router_inputs import HTTPS, reachable_url
from infra.provider.site import Site
from infra.secrets import ADMIN_KEY, API_KEY, DATABASE_PASSWORD, TLS_CERTIFICATE, SecretStore
from infra.ssh.target import Patience
from infra.stack import TINY, StackDescription, load, with_model
from infra.stack.description import DescriptionError
from infra.state import backend
from router.client import AdminClient
from router.contract import INTERACTIVE

STACK_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Deployment:
    """One stack: what it should be, and where it is kept."""

    description: StackDescription
    paths: StackPaths

    @classmethod
    def described(cls, stack: str, model: str | None = None) -> Deployment:
        """What the stack file asks for now. `stack` is a name or a path, `model` overrides the file's."""
        description = load(stack)
        if model:
            description = with_model(description, model, Path.cwd())
        return cls(description, StackPaths.of(description.name))

    @classmethod
    def remembered(cls, stack: str) -> Deployment:
        """What was deployed last. Raises DescriptionError if nothing was."""
        paths = StackPaths.of(stack_name(stack))
        if deployment := cls.kept(paths):
            return deployment
        raise DescriptionError(
            f"stack {paths.root.name} is not deployed from this checkout; run `make deploy STACK={stack}`"
        )

    @classmethod
    def kept(cls, paths: StackPaths) -> Deployment | None:
        """What lies in the stack's folder. Raises DescriptionError if it cannot be read."""
        kept = _kept(paths)
        try:
            return cls(StackDescription.model_validate_json(kept.read_bytes()), paths)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise DescriptionError(f"{kept} cannot be read; deploy the stack again: {error}") from None

    def remember(self, *, exists: bool = True) -> None:
        """Keep the description, before anything is brought about by it. What was proved before counts no more.

        The stack's time begins with its first deploy: where nothing was kept, or nothing of it `exists` any more
        because somebody destroyed it from another checkout.
        """
        _proof(self.paths).unlink(missing_ok=True)
        if not _kept(self.paths).exists() or not exists:
            _begin(self.paths, time.time())
        replace_file(_kept(self.paths), self.description.model_dump_json(indent=2).encode() + b"\n")

    def began(self, now: float) -> float:
        """When the stack's time began to run, in seconds since the epoch: with its first deploy, or else `now`."""
        if not _beginning(self.paths).exists():
            _begin(self.paths, now)
        return float(_beginning(self.paths).read_text())

    @property
    def proved(self) -> bool:
        """Whether an image has been made by what was brought up last."""
        return _proof(self.paths).exists()

    def prove(self) -> None:
        """An image was made."""
        replace_file(_proof(self.paths), b"")

    @property
    def pool_in_use(self) -> str | None:
        """A pool that has machines: the interactive one if that has any."""
        pools = self.description.pools
        used = [name for name, pool in pools.items() if pool.machines]
        return INTERACTIVE if INTERACTIVE in used else next(iter(used), None)

    @property
    def tiny(self) -> bool:
        """Whether the weights are random and the pictures noise."""
        return self.description.model == TINY

    def place(self, patience: Patience = Patience(reach_s=0.0)) -> RouterPlace:  # noqa: B008 - a value
        """Where its router is."""
        return RouterPlace(Site(self.paths, os.environ), router_access(self.description), patience)

    def admin(self, key: str = "") -> AdminClient:
        """A client of the admin app, wherever that is. `key` may be empty for one that only reads."""
        return self.place().admin_alone(self.endpoint.admin_url, key)

    @property
    def admin_key(self) -> str:
        return self.endpoint.admin_key_file.read_text().strip()

    @property
    def database(self) -> dict[str, str]:
        """What a program of the router's is told of a database that is described; nothing for SQLite."""
        url = database_url(self.description.router.database)
        password = SecretStore(self.paths.secrets).path(DATABASE_PASSWORD)
        told = {"DATABASE_URL": url, "DATABASE_PASSWORD_FILE": str(password) if password.exists() else ""}
        return {f"LETTERPRESS_ROUTER_{name}": value for name, value in told.items() if url and value}

    @property
    def endpoint(self) -> Endpoint:
        router = self.description.router
        edge, admin = router.edge, router.admin
        secrets = SecretStore(self.paths.secrets)
        scheme = "https" if edge.tls else "http"
        everywhere = edge.host in ("0.0.0.0", "::")  # noqa: S104 - read, not bound
        near = reachable_url(router.host.address if router.host and everywhere else edge.host, edge.port, scheme)
        shown = self.paths.router / "edge/tls/chain.pem" if edge.tls and not edge.tls.certificate else None
        if edge.tls and edge.tls.certificate:
            shown = secrets.path(TLS_CERTIFICATE)
        named = f"https://{edge.tls.domain}" if edge.tls and edge.tls.domain else ""
        return Endpoint(
            url=named + ("" if edge.port == HTTPS else f":{edge.port}") if named else near,
            near=near,
            certificate=shown,
            admin_url=reachable_url(admin.host, admin.port),
            api_key_file=secrets.path(API_KEY),
            admin_key_file=secrets.path(ADMIN_KEY),
        )


def forget(paths: StackPaths) -> None:
    """Nothing of the stack runs any more. Its secrets, logs and the router's data stay."""
    _kept(paths).unlink(missing_ok=True)
    _proof(paths).unlink(missing_ok=True)
    # Left there, it would end the next fleet of this name with watch's first round.
    _beginning(paths).unlink(missing_ok=True)
    backend.forget(paths)


def stack_name(stack: str) -> str:
    """The stack's name: given itself, or in the file at the path that was given.

    A path whose file is gone or broken still tells, by its own name, a stack that has a folder here.
    """
    if STACK_NAME.fullmatch(stack):
        return stack
    try:
        return load(stack).name
    except DescriptionError:
        guess = Path(stack).stem
        if STACK_NAME.fullmatch(guess) and StackPaths.of(guess).root.is_dir():
            return guess
        raise


def _proof(paths: StackPaths) -> Path:
    return paths.root / "first-image-made"


def _begin(paths: StackPaths, now: float) -> None:
    replace_file(_beginning(paths), f"{now:.0f}\n".encode())


def _beginning(paths: StackPaths) -> Path:
    return paths.root / "watch-began"


def _kept(paths: StackPaths) -> Path:
    return paths.root / "description.json"
