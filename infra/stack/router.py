"""The part of a stack file that describes the router host: where it is, its edge, and what it keeps things in."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from infra.stack.words import Described, Host, Port, Reference, Text, User

HERE = "here"
"""A Redis that the router host runs for this stack alone."""
PUBLIC = {"host": "0.0.0.0", "port": 443}  # noqa: S104 - the edge of a machine of its own is for everybody


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _loopback(text: str) -> str:
    if text != "localhost" and not _is_loopback(text):
        raise PydanticCustomError(
            "loopback", "should be a loopback address such as 127.0.0.1: the admin app is never public"
        )
    return text


class Tls(Described):
    """HTTPS at the edge: by a certificate of your own, or by one that certbot gets and renews for `domain`."""

    certificate: Text | None = Field(None, description="File: the server's own certificate, then its chain, in PEM.")
    key: Text | None = Field(None, description="File: its private key, in PEM.")
    domain: Annotated[str, StringConstraints(pattern=r"^([a-z0-9-]{1,63}\.){1,8}[a-z]{2,63}$")] | None = Field(
        None,
        description="The name by which clients call the edge. certbot gets a certificate for it unless you have one.",
    )
    email: Text | None = Field(None, description="Where the authority writes to when a certificate runs out.")
    accept_terms: bool = Field(False, strict=True, description="Of the authority, Let's Encrypt: read and accepted.")
    plain_port: Port | None = Field(
        None, description="Plain HTTP, to send browsers on to HTTPS; default with certbot: 80, otherwise none."
    )

    @property
    def plain(self) -> int | None:
        """The port of plain HTTP. An authority asks on 80 and nowhere else (RFC 8555, 8.3)."""
        return self.plain_port or (None if self.certificate else 80)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        own = (self.certificate, self.key)
        if any(own) != all(own) or not (any(own) or self.domain):
            raise PydanticCustomError("tls", "should have certificate and key, or else a domain for certbot")
        if not any(own) and not self.accept_terms:
            raise PydanticCustomError(
                "tls", "should say `accept_terms: true`, once you have read https://letsencrypt.org/repository/"
            )
        return self


class Edge(Described):
    """Where the edge listens: the stack's one public address."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    tls: Tls | None = Field(None, description="HTTPS; without it the edge is for a network that you trust.")


class Admin(Described):
    """Where the admin app listens, on the router host's loopback."""

    host: Annotated[Host, AfterValidator(_loopback)] = "127.0.0.1"
    port: Port = 8081


def _cidr(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise PydanticCustomError("cidr", "should be a network such as 10.0.0.0/8, or an address") from None


Cidr = Annotated[str, AfterValidator(_cidr)]


class Bucket(Described):
    """An S3-compatible bucket for the images, which clients fetch from there by signed URLs that expire.

    More than one router host needs one: a folder of one host cannot be read on another.
    """

    bucket: Text
    prefix: Text | None = Field(None, description="A folder in the bucket; default: its root.")
    region: Text = "us-east-1"
    endpoint: Text | None = Field(None, description="Of a service that is not Amazon's: https://…")
    public_endpoint: Text | None = Field(None, description="Where clients reach the service, if not at `endpoint`.")
    access_key_id: Reference | None = Field(None, description="Default: the role of the router's machine.")
    secret_access_key: Reference | None = None

    @model_validator(mode="after")
    def _whole_key(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise PydanticCustomError("key", "should have both access_key_id and secret_access_key, or neither")
        return self


class RouterMachine(Described):
    """A machine of its own for the router, reached through SSH. Default: this computer."""

    address: Host = Field(description="Its name or address.")
    port: Port = 22
    user: User = Field("root", description="Anybody else needs sudo there.")
    key: Text | None = Field(None, description="A private key's file here; default: the stack's own key.")
    sudo_password: Reference | None = Field(None, description="What sudo asks of `user`; default: it asks nothing.")


def _postgres(url: str) -> str:
    parsed = urlsplit(url)
    if parsed.password is not None:
        # Not shown, for what stands there holds a secret.
        raise PydanticCustomError("secret", "should hold no password: give it as `database_password: ${NAME}`")
    if parsed.scheme not in ("postgresql", "postgres") or not parsed.hostname or not parsed.path.strip("/"):
        raise PydanticCustomError("database", "should be postgresql://USER@HOST/NAME; leave it out for SQLite")
    return url


def _redis(url: str) -> str:
    parsed = urlsplit(url)
    if parsed.password is not None:
        raise PydanticCustomError("secret", "should hold no password: give it as `redis_password: ${NAME}`")
    if url != HERE and (parsed.scheme not in ("redis", "rediss") or not parsed.hostname):
        raise PydanticCustomError("redis", "should be redis://HOST:PORT/0, or `here` for one that the router host runs")
    return url


class Router(Described):
    """The router host: the router itself, and the edge in front of it."""

    host: RouterMachine | None = Field(None, description="A machine of its own for it. Default: this computer.")
    edge: Edge = Edge()
    admin: Admin = Admin()
    database: Annotated[str, AfterValidator(_postgres)] | None = Field(
        None, description="postgresql://USER@HOST/NAME, as the router host reaches it. Default: SQLite in its folder."
    )
    database_password: Reference | None = None
    redis: Annotated[str, AfterValidator(_redis)] | None = Field(
        None,
        description="redis://HOST:PORT/0, or `here` for one that the router host runs: jobs are then driven by "
        "consumers. Default: none, and the router drives its workers itself.",
    )
    redis_password: Reference | None = None
    redis_port: Port = Field(6379, description="Of `redis: here`, on the router host's loopback.")
    processes: Annotated[int, Field(strict=True, ge=1, le=16)] = Field(
        1, description="Router processes; their admin apps take the ports from `admin.port` on."
    )
    consumers: Annotated[int, Field(strict=True, ge=0, le=16)] | None = Field(
        None, description="Processes that drive workers. Default: one if there is a Redis."
    )
    s3: Bucket | None = Field(None, description="Keeps the images, instead of a folder of the router host.")
    webhook_allow: tuple[Cidr, ...] = Field(
        (), description="Addresses beside the public ones that webhooks may go to: 10.0.0.0/8. Only there by http."
    )

    @model_validator(mode="before")
    @classmethod
    def _public_edge(cls, data: object) -> object:
        """On a machine of its own the edge is public unless it says otherwise."""
        if not isinstance(data, Mapping) or not data.get("host"):
            return data
        edge = data.get("edge") or {}
        return {**data, "edge": {**PUBLIC, **edge} if isinstance(edge, Mapping) else edge}

    @model_validator(mode="after")
    def _machine_with_https(self) -> Self:
        if self.host is None:
            return self
        if self.edge.tls is None:
            raise PydanticCustomError(
                "tls", "should have edge.tls with a host: clients reach it over a network, and send their keys"
            )
        if self.edge.host == "localhost" or _is_loopback(self.edge.host):
            raise PydanticCustomError(
                "host", "should not have a loopback address for edge.host with a host: nobody could reach it there"
            )
        return self

    @model_validator(mode="after")
    def _shared_by_several(self) -> Self:
        """What ADR 17 wants: several processes stand on one PostgreSQL and one Redis."""
        if self.redis and not self.database:
            raise PydanticCustomError("redis", "should have a database with redis: SQLite is for one router alone")
        if self.processes > 1 and not self.redis:
            raise PydanticCustomError("processes", "should have database and redis for several processes")
        if self.consumers and not self.redis:
            raise PydanticCustomError("consumers", "should have database and redis for consumers")
        if self.redis and self.consumers == 0:
            raise PydanticCustomError("consumers", "should have a consumer with redis, or no job is ever begun")
        if self.database_password and not self.database:
            raise PydanticCustomError("database", "should have a database for database_password")
        if self.redis_password and self.redis in (None, HERE):
            raise PydanticCustomError("redis", "should have a redis URL for redis_password")
        return self

    @property
    def driving(self) -> int:
        """How many consumers drive its workers; 0 where it does so itself."""
        if self.consumers is not None:
            return self.consumers
        return 1 if self.redis else 0
