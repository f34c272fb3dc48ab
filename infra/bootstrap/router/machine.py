"""What the steps of a router's machine are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.bootstrap.machine import Place
from infra.hosts.layout import Accounts, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterMachine(Place):
    """`ports` are open to everybody. `wheel` builds the package of this checkout, into a folder, when it is wanted;
    `version` is what its code is called there."""

    layout: Layout
    accounts: Accounts
    ports: tuple[int, ...]
    version: str
    wheel: Callable[[Path], Path]
    constraints: Path
    redis: bool = False
    certbot: bool = False
