"""What a stack has left on machines that the user keeps, because they did not answer when it went.

A destroy needs no host to answer: each machine that did not is noted here, with a script that takes the rest away, and
is told of at the end of the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.clouds import Access
from infra.files import replace_file
from infra.paths import StackPaths


class Remains(BaseModel):
    """One machine: its name, how it is reached, why something is left there, and the script that takes it away."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    machine: str
    address: str
    port: int
    user: str
    asks: bool = False
    """Whether sudo asks `user` for a password."""
    why: str
    script: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Remains, and the file that holds their script."""

    remains: Remains
    script: Path

    @property
    def lines(self) -> tuple[str, ...]:
        """For people: what is left and how to take it away."""
        it, file = self.remains, self.script
        to = f"{it.user}@{it.address}"
        if it.user == "root":
            command = f"ssh -p {it.port} {to} sh <{file}"
        elif not it.asks:
            command = f"ssh -p {it.port} {to} sudo sh <{file}"
        else:
            command = f"scp -P {it.port} {file} {to}: && ssh -t -p {it.port} {to} sudo sh ./{file.name}"
        left = "services, their folder, the keys in it, the firewall"
        return (
            f"{it.machine} ({it.address}) still has what the stack put there: {left}.",
            f"  Why: {it.why}",
            f"  To take it away: {command}",
        )


def note(paths: StackPaths, machine: str, access: Access, why: str, script: str) -> None:
    remains = Remains(
        machine=machine,
        address=access.address,
        port=access.port,
        user=access.user,
        asks=bool(access.sudo_password),
        why=why,
        script=script,
    )
    file = _file(paths, machine, access)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(file, remains.model_dump_json(indent=2).encode() + b"\n")
    replace_file(file.with_suffix(".sh"), script.encode())


def forget(paths: StackPaths, machine: str, access: Access) -> None:
    """Nothing is left there, or it is the stack's again."""
    file = _file(paths, machine, access)
    file.unlink(missing_ok=True)
    file.with_suffix(".sh").unlink(missing_ok=True)


def listed(paths: StackPaths) -> Sequence[Kept]:
    found = []
    for file in sorted(_folder(paths).glob("*.json")):
        try:
            found.append(Kept(Remains.model_validate_json(file.read_bytes()), file.with_suffix(".sh")))
        except (FileNotFoundError, ValidationError):
            continue
    return found


def _folder(paths: StackPaths) -> Path:
    return paths.root / "remains"


def _file(paths: StackPaths, machine: str, access: Access) -> Path:
    """By address too: one machine's name may have been at two of them."""
    return _folder(paths) / f"{machine}-at-{access.address}-{access.port}.json".replace("/", "_")
