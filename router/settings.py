"""What a router process is told from outside: environment variables, and the secrets in the files they name.

Secrets come by file only: an environment is shown by `ps e` and inherited by children.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar, overload
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, HttpUrl, StringConstraints, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from router.admission import Bounds
from router.artifacts.s3 import Bucket
from router.batches import Quota
from router.contract import SOCKET_PATH_MAX
from router.core import CoreConfig, Shared
from router.errors import RouterError
from router.retention import Retention
from router.spill import SpillRule
from router.webhooks.addresses import Network, networks

PREFIX = "LETTERPRESS_ROUTER_"
MIN_SECRET_CHARS = 16
S = TypeVar("S", bound="SharedSettings")


class SettingsError(RouterError):
    """The router cannot start as it was told to; each line names a variable or a file, and what to change."""


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


def _socket_path(path: Path) -> Path:
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_MAX:
        raise ValueError(
            f"{path} has {length} bytes; a unix socket's path ends at {SOCKET_PATH_MAX}: use a shorter one"
        )
    return path


def _loopback(host: str) -> str:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(f"{host} is not a loopback address; the admin app is reached by SSH, never over a network")
    return host


def _without_password(url: str) -> str:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("is no database URL; use postgresql+asyncpg://user@host/name") from None
    if parsed.password is not None:
        raise ValueError(f"holds a password, which `ps` shows; put it in a file: {PREFIX}DATABASE_PASSWORD_FILE")
    return url


def _redis(url: str) -> str:
    parsed = urlsplit(url)
    if parsed.scheme not in ("redis", "rediss"):
        raise ValueError("is no Redis URL; use redis://host:port/0")
    if parsed.password is not None:
        raise ValueError(f"holds a password, which `ps` shows; put it in a file: {PREFIX}REDIS_PASSWORD_FILE")
    return url


class SharedSettings(BaseSettings):
    """What routers and consumers of one stack are told alike: `LETTERPRESS_ROUTER_DATA_DIR` and so on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    data_dir: Path = Field(description="Holds the default database and the artifacts; made if it is missing.")
    database_url: Annotated[str, AfterValidator(_without_password)] | None = Field(
        default=None, description="postgresql+asyncpg://user@host/name; SQLite in the data folder if not given."
    )
    database_password_file: Path | None = None
    redis_url: Annotated[str, AfterValidator(_redis)] | None = Field(
        default=None,
        description="redis://host:port/0: jobs are driven by consumers (`letterpress consume`), not by the router.",
    )
    redis_password_file: Path | None = None
    queue_bound: int = Field(default=1000, ge=1, description="Jobs that may wait in a pool other than batch.")
    batch_queue_bound: int = Field(default=200_000, ge=1, description="Jobs that may wait in the batch pool.")
    wait_bound_s: float = Field(
        default=600.0, gt=0, description="Nobody stays on the line for an image predicted to wait longer: 503."
    )
    boot_hold_s: float = Field(
        default=900.0, gt=0, description="How long a request is held for a pool whose machines boot."
    )
    lease_ttl_s: float = Field(default=15.0, ge=1.0, le=600.0)
    look_ahead_s: float = Field(
        default=0.3,
        ge=0,
        le=60,
        description="How long before its predicted end a running generation gets a successor; 0: only after it.",
    )
    keep_jobs_days: float = Field(
        default=0.0, ge=0, le=36_500, description="How long ended jobs and their images are kept; 0: for ever."
    )
    spill_rules: tuple[SpillRule, ...] = Field(
        default=(),
        description="Pools whose idle workers may take another's jobs, as JSON: "
        '[{"giver": "interactive", "taker": "batch", "longest_s": 5, "idle_kept": 1}]',
    )
    s3_bucket: str | None = Field(default=None, description="Keeps the images, instead of a folder of this host.")
    s3_prefix: Annotated[str, AfterValidator(lambda text: text.strip("/"))] = ""
    s3_region: str = "us-east-1"
    s3_endpoint: HttpUrl | None = Field(default=None, description="Of a service that is not Amazon's.")
    s3_public_endpoint: HttpUrl | None = Field(default=None, description="Where clients reach it, if elsewhere.")
    s3_credentials_file: Path | None = Field(
        default=None, description="As ~/.aws/credentials; default: the host's role."
    )
    tunnels_status_file: Path | None = Field(default=None, description="What this host's tunnel service writes.")
    webhook_allow: str = Field(default="", description="Private addresses webhooks may go to: 10.0.0.0/8,127.0.0.1")
    log_format: LogFormat = LogFormat.JSON

    @property
    def database(self) -> str:
        """The URL to open, with the password: not to be shown. SettingsError if its file cannot be read."""
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{(self.data_dir / 'router.db').resolve()}"
        if self.database_password_file is None:
            return self.database_url
        password = read_secret(self.database_password_file, min_chars=1)
        return make_url(self.database_url).set(password=password).render_as_string(hide_password=False)

    @property
    def artifacts(self) -> Path:
        return self.data_dir / "artifacts"

    @field_validator("webhook_allow")
    @classmethod
    def _networks(cls, text: str) -> str:
        networks(text)
        return text

    @property
    def webhook_exceptions(self) -> tuple[Network, ...]:
        return networks(self.webhook_allow)

    @property
    def bucket(self) -> Bucket | None:
        if self.s3_bucket is None:
            return None
        return Bucket(
            self.s3_bucket,
            self.s3_prefix,
            self.s3_region,
            _base(self.s3_endpoint),
            _base(self.s3_public_endpoint),
            self.s3_credentials_file,
        )

    @property
    def shared(self) -> Shared | None:
        """How this process stands together with others; None: it stands alone."""
        if self.redis_url is None:
            return None
        if self.redis_password_file is None:
            return Shared(self.redis_url)
        password = quote(read_secret(self.redis_password_file, min_chars=1), safe="")
        scheme, _, rest = self.redis_url.partition("://")
        user, at, place = rest.rpartition("@")
        return Shared(f"{scheme}://{user if at else ''}:{password}@{place}")

    @property
    def core(self) -> CoreConfig:
        return CoreConfig(
            database_url=self.database,
            artifacts_root=self.artifacts,
            bucket=self.bucket,
            lease_ttl_ms=int(self.lease_ttl_s * 1000),
            bounds=Bounds(self.queue_bound, self.batch_queue_bound, self.wait_bound_s, self.boot_hold_s),
            ahead_s=self.look_ahead_s,
            spill_rules=self.spill_rules,
            retention=Retention(keep_s=self.keep_jobs_days * 86_400 or None),
        )


class RouterSettings(SharedSettings):
    """`LETTERPRESS_ROUTER_SOCKET` and so on; a field without a default must be set."""

    socket: Annotated[Path, AfterValidator(_socket_path)] = Field(description="Where the edge finds the public app.")
    admin_host: Annotated[str, AfterValidator(_loopback)] = "127.0.0.1"
    admin_port: int = Field(default=8081, ge=1, le=65535)
    api_key_file: Path
    admin_key_file: Path
    signing_key_file: Path
    public_url: HttpUrl = Field(description="The edge as clients see it; image URLs begin with it.")
    link_lifetime_s: int = Field(default=3600, ge=60, le=7 * 86_400, description="How long an image URL is good.")
    edge_sends_artifacts: bool = Field(default=False, description="Whether the edge may read the artifacts' folder.")
    files_per_key: int = Field(default=10_000, ge=1, description="Files that an API key may keep.")
    files_gib_per_key: float = Field(
        default=256.0, gt=0, le=2**20, description="What they may be together, with what open batches may still write."
    )
    model_aliases: dict[str, str] = Field(
        default_factory=dict,
        description='More names for models that are served, as JSON: {"art": "ideogram-4"}. OpenAI\'s are known.',
    )
    drain_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="How long a router that is told to stop goes on answering those who wait. With another router "
        "beside it, long enough for an image: then a restart is noticed by nobody.",
    )

    @property
    def quota(self) -> Quota:
        return Quota(self.files_per_key, int(self.files_gib_per_key * 2**30))

    @property
    def public_base(self) -> str:
        return _base(self.public_url)


class ConsumerSettings(SharedSettings):
    """A consumer's. `LETTERPRESS_ROUTER_REDIS_URL` must be set."""

    consumer_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = Field(
        default_factory=lambda: socket.gethostname()[:63],
        description="Its own among all consumers; what the last one of this name left running is joined.",
    )
    consumer_threads: int = Field(default=64, ge=1, le=1024, description="At least one for each worker of the stack.")
    consumer_stop_s: float = Field(default=120.0, ge=0, description="How long what runs may take when it is to stop.")


@overload
def _base(url: HttpUrl) -> str: ...
@overload
def _base(url: HttpUrl | None) -> str | None: ...
def _base(url: HttpUrl | None) -> str | None:
    return None if url is None else str(url).rstrip("/")


def read_settings() -> RouterSettings:
    """The router's settings from the environment. SettingsError lists everything that is wrong with them."""
    return _read(RouterSettings)


def read_consumer_settings() -> ConsumerSettings:
    """A consumer's. Raises as `read_settings` does."""
    return _read(ConsumerSettings)


def read_shared_settings() -> SharedSettings:
    """What both are told. Raises as `read_settings` does."""
    return _read(SharedSettings)


def _read(kind: type[S]) -> S:
    try:
        return kind()
    except ValidationError as error:
        lines = []
        for fault in error.errors(include_url=False):
            name = PREFIX + str(fault["loc"][0]).upper() if fault["loc"] else PREFIX
            why = "is not set" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {why}")
        raise SettingsError("\n".join(lines)) from error


def read_secret(path: Path, min_chars: int = MIN_SECRET_CHARS) -> str:
    """The one secret that a file holds. SettingsError if it is not there, too short, or open to other users."""
    try:
        mode = path.stat().st_mode
        secret = path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); it must hold a secret") from error
    if mode & 0o077:
        raise SettingsError(f"{path}: holds a secret that other users may touch; run: chmod 600 {path}")
    if len(secret) < min_chars:
        raise SettingsError(f"{path}: a secret has at least {min_chars} characters, this has {len(secret)}")
    return secret
