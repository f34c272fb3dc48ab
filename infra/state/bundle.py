"""A stack's keys and placement as one sealed text, so that a second operator can take the stack over.

Pure, but for reading and writing the stack's own files: what goes in, how it is sealed (scrypt and ChaCha20-Poly1305,
docs/adr), and whose turn it is when two hold a bundle. Keeping it in the backend is `infra.state.custody`'s.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from infra.clouds import hosts
from infra.errors import InfraError
from infra.files import replace_file
from infra.paths import StackPaths
from infra.ssh.pins import Pins

PASSPHRASE_NAME = "bundle-passphrase"  # noqa: S105 - the name of a file
SCRYPT_N = 2**17
"""128 MiB and about half a second for each guess (OWASP's advice for scrypt)."""
PINS = "known_hosts"
ALONE = ("stack-id", "placement.json", "description.json", PINS, "watch-began")
INSIDE = re.compile(
    r"secrets/[A-Za-z0-9][A-Za-z0-9._-]*|project/Pulumi\.[a-z0-9-]+\.yaml|hosts/[A-Za-z0-9][A-Za-z0-9._-]*\.json"
)

Files = Mapping[str, bytes]
_FILES = TypeAdapter(dict[str, str])


class BundleError(InfraError):
    """The bundle cannot be opened or kept; the message says why and what to do."""


class Header(BaseModel):
    """What everybody may read of a bundle. `after` is the id of the one that it was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    stack: str
    id: str
    after: str | None
    by: str
    at: datetime
    salt: str
    nonce: str
    # Bounded: whoever can write to the backend must not make us work for ever.
    n: int = Field(SCRYPT_N, ge=2**14, le=2**20)


class Sealed(BaseModel):
    """A bundle as it is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    header: Header
    content: str

    @classmethod
    def read(cls, text: str) -> Sealed:
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            raise BundleError(
                "the bundle in the backend is none that this release can read; take a newer one"
            ) from None


class Held(BaseModel):
    """What this checkout remembers of the bundle that it wrote or opened last."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    digest: str
    pins: str = ""
    """Of the host keys apart: every look at a machine may pin one, and that sets nobody apart."""


class Standing(Enum):
    """How this checkout's files and the backend's bundle stand to each other."""

    SAME = auto()
    OURS_NEWER = auto()
    THEIRS_NEWER = auto()
    APART = auto()  # both have changed since they were the same, or never were


def standing(ours: str | None, held: Held | None, theirs: str | None) -> Standing:
    """`ours` is the digest of what would be sealed here (None: nothing yet), `theirs` the backend's bundle's id."""
    if theirs is None:
        return Standing.SAME if ours is None else Standing.OURS_NEWER
    if ours is None:
        return Standing.THEIRS_NEWER
    if held is None:
        return Standing.APART
    if held.id == theirs:
        return Standing.SAME if held.digest == ours else Standing.OURS_NEWER
    return Standing.THEIRS_NEWER if held.digest == ours else Standing.APART


def collect(paths: StackPaths) -> Files:
    """Everything of the stack that goes into its bundle, by path within its folder; nothing if it has no keys yet."""
    found = [paths.root / name for name in ALONE]
    found += [*paths.secrets.glob("*"), *(paths.root / "project").glob("Pulumi.*.yaml")]
    found += (paths.root / hosts.NAME).glob("*.json")  # which of the user's own machines are the stack's
    names = {file.relative_to(paths.root).as_posix(): file for file in found if file.is_file()}
    return {
        name: file.read_bytes()
        for name, file in sorted(names.items())
        if _belongs(name) and file.name != PASSPHRASE_NAME
    }


def restore(files: Files, paths: StackPaths) -> None:
    """Put a bundle's files in their places. What is here and not in the bundle stays, a machine's host key too."""
    for name, content in files.items():
        target = paths.root / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if name == PINS:
            Pins(target).add(content.decode())
        else:
            replace_file(target, content)


def digest(files: Files) -> str | None:
    """Of what would be sealed, but for the host keys; None for nothing."""
    return hashlib.sha256(_packed({name: files[name] for name in files if name != PINS})).hexdigest() if files else None


def pins_in(files: Files) -> str:
    """A digest of the host keys; empty if there are none."""
    return hashlib.sha256(files[PINS]).hexdigest() if files.get(PINS) else ""


@dataclass(frozen=True, slots=True)
class Seal:
    """Who seals, for the header: the moment and the person are its caller's to know."""

    stack: str
    by: str
    at: datetime


def seal(files: Files, passphrase: str, after: str | None, who: Seal) -> Sealed:
    """The sealed text, under a fresh salt, nonce and id."""
    header = Header(
        stack=who.stack,
        id=secrets.token_hex(8),
        after=after,
        by=who.by,
        at=who.at,
        salt=_text(secrets.token_bytes(16)),
        nonce=_text(secrets.token_bytes(12)),
    )
    content = _cipher(header, passphrase).encrypt(
        base64.b64decode(header.nonce), _packed(files), _authenticated(header)
    )
    return Sealed(header=header, content=_text(content))


def unseal(sealed: Sealed, passphrase: str) -> Files:
    """The files. Raises BundleError for a wrong passphrase, or a bundle that somebody tampered with."""
    header = sealed.header
    try:
        packed = _cipher(header, passphrase).decrypt(
            base64.b64decode(header.nonce), base64.b64decode(sealed.content), _authenticated(header)
        )
    except (InvalidTag, ValueError):
        raise BundleError(
            f"stack {header.stack}: the passphrase does not open its bundle (sealed by {header.by} at "
            f"{header.at:%Y-%m-%d %H:%M} UTC), or somebody changed it; ask {header.by} for the passphrase"
        ) from None
    files = {name: base64.b64decode(content) for name, content in _FILES.validate_json(packed).items()}
    if strange := [name for name in files if not _belongs(name)]:
        raise BundleError(f"stack {header.stack}: its bundle holds {strange[0]}, which is no file of a stack")
    return files


def _belongs(name: str) -> bool:
    return name in ALONE or bool(INSIDE.fullmatch(name))


def _packed(files: Files) -> bytes:
    return _FILES.dump_json({name: _text(content) for name, content in sorted(files.items())})


def _authenticated(header: Header) -> bytes:
    """The header is for everybody to read and for nobody to change."""
    return header.model_dump_json().encode()


def _cipher(header: Header, passphrase: str) -> ChaCha20Poly1305:
    salt = base64.b64decode(header.salt)
    return ChaCha20Poly1305(Scrypt(salt=salt, length=32, n=header.n, r=8, p=1).derive(passphrase.encode()))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
