"""The stack's generated secrets: made once, 0600, read at the moment of use.

Secrets never pass through a Pulumi resource: resources carry a secret's name and its fingerprint, and
whoever needs the value (the provider, a unit by its file) reads it here.
"""

from __future__ import annotations

import secrets as entropy
from dataclasses import dataclass
from pathlib import Path

from infra.files import create_once, replace_file
from router.contract import fingerprint

PASSPHRASE = "passphrase"  # noqa: S105 - the name of a file
API_KEY = "api-key"
ADMIN_KEY = "admin-key"
SIGNING_KEY = "signing-key"
ROUTER_KEYS = (API_KEY, ADMIN_KEY, SIGNING_KEY)
"""Every router has these."""
S3_CREDENTIALS = "s3-credentials"
TLS_CERTIFICATE = "tls-certificate"
TLS_KEY = "tls-key"
DATABASE_PASSWORD = "database-password"  # noqa: S105 - the name of a file
REDIS_PASSWORD = "redis-password"  # noqa: S105


def worker_token(worker: str) -> str:
    """The name of a worker's token."""
    return f"worker-token-{worker}"


@dataclass(frozen=True, slots=True)
class SecretStore:
    """Secrets as files of one folder. `folder` is 0700; each file holds one secret and is 0600."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    def ensure(self, name: str) -> str:
        """The secret's value, drawn now (256 bits) if it does not exist yet. Two processes at once agree."""
        path = self.path(name)
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            prefix = "lp_" if name in (API_KEY, ADMIN_KEY) else ""
            create_once(path, f"{prefix}{entropy.token_urlsafe(32)}".encode())
        return self.read(name)

    def keep(self, name: str, value: str) -> None:
        """Somebody else's secret, as it is now; what was kept under the name before is gone."""
        path = self.path(name)
        if not path.exists() or self.read(name) != value:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(path, value.encode() + b"\n")

    def read(self, name: str) -> str:
        """The value of a secret that exists; FileNotFoundError names it otherwise."""
        return self.path(name).read_text().strip()

    def fingerprint(self, name: str) -> str:
        """What may be shown and stored of it."""
        return fingerprint(self.ensure(name))
