"""The stack's id, drawn once and kept in its folder: what everything rented for it is named with.

Two people may call their stacks the same and share a cloud account; their ids differ, so neither ever
finds, adopts or ends the other's machines.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from infra.errors import InfraError
from infra.files import create_once

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
LENGTH = 8
"""40 bits: a hundred thousand stacks on one account share an id with a chance of one in two hundred."""


class IdentityError(InfraError):
    """The file with the stack's id does not hold one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a stack is, for the clouds."""

    id: str

    def machine(self, resource: str, generation: int) -> str:
        """The one name that a machine of this stack is created, looked for and adopted under."""
        return f"lp-{self.id}-{resource}-g{generation}"


def ensure_identity(file: Path) -> Identity:
    """The stack's identity, drawn now if it has none. Two commands at once agree: the first one stays."""
    if not file.exists():
        create_once(file, "".join([*(secrets.choice(ALPHABET) for _ in range(LENGTH)), "\n"]).encode())
    drawn = file.read_text().strip()
    if not re.fullmatch(f"[{ALPHABET}]{{{LENGTH}}}", drawn):
        raise IdentityError(f"{file} does not hold a stack's id; machines are named with it: restore the file")
    return Identity(drawn)
