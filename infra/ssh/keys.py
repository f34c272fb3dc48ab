"""The stack's own SSH keys: Ed25519, drawn once, as OpenSSH and paramiko read them.

`LOGIN` sets machines up. `TUNNEL` is the tunnel service's and may forward and nothing else
(`router.contract.forward_only`): a router host that is broken into gives nobody a shell on a worker's machine.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from infra.files import create_once

LOGIN = "ssh-key"
TUNNEL = "tunnel-key"


def ensure_key(folder: Path, name: str) -> Path:
    """The private key's file in the stack's folder of secrets, drawn now if there is none. Two at once agree."""
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        drawn = Ed25519PrivateKey.generate()
        create_once(path, drawn.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return path


def public_line(path: Path, comment: str) -> str:
    """What authorized_keys holds for it."""
    public = load_ssh_private_key(path.read_bytes(), password=None).public_key()
    return f"{public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()} {comment}"
