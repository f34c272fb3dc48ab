"""The part of a stack file that describes the router host: the edge, the admin app, where images are kept."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from infra.stack.words import Described, Host, Port, Reference, Text


def _loopback(text: str) -> str:
    try:
        loopback = text == "localhost" or ipaddress.ip_address(text).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
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


class Router(Described):
    """The router host: the router itself, and the edge in front of it."""

    edge: Edge = Edge()
    admin: Admin = Admin()
    s3: Bucket | None = Field(None, description="Keeps the images, instead of a folder of the router host.")
    webhook_allow: tuple[Cidr, ...] = Field(
        (), description="Addresses beside the public ones that webhooks may go to: 10.0.0.0/8. Only there by http."
    )
