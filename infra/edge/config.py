"""What the edge does, as nginx configuration: settings in, text out.

One public listener in front of the router's unix socket. The edge bounds what comes in, passes what goes
out without delay, and speaks for the router while that is away, in the dialect of the path that was
asked for. It decides nothing else: unknown paths, keys and every other refusal are the router's. Running
it is `infra.edge.nginx`'s part. The text is good for nginx 1.18 to 1.28.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from infra.errors import InfraError

MAX_BODY_BYTES = 1024 * 1024
MAX_HEADER_KIB = 32
"""The longest address, and the longest header."""
MAX_BATCH_BYTES = 200 * 2**20
"""Of the files with which batches begin: the router's bound (router.contract), which this module knows without it."""
ARTIFACTS = "/.artifacts/"
"""Where the router finds the images' folder on the edge, and nobody else does."""
READ_TIMEOUT_S = 3600
"""How long an answer may keep silent: an image that waits in a long queue is not late."""
RETRY_AFTER_S = 2
"""A router that was told to restart is back by then."""
ROUTER_KEEPALIVE_S = 4
"""Under the 5 s after which uvicorn closes an idle connection: the side that sends must be the first to
let go, or a request now and then meets a connection that has just closed."""

HSTS_S = 63_072_000
CHALLENGES = "/.well-known/acme-challenge/"
"""Where a certificate authority looks (RFC 8555, 8.3)."""
INSECURE = "This is sent in the clear, your key too: use https, and revoke a key that was sent here."
CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)

LARGE_PATHS = ("/v1/jobs/batch", "/v1/files")
"""Where a body may be larger than everywhere else."""


class EdgeError(InfraError):
    """The edge cannot be run as described; the message says why and what to change."""


@dataclass(frozen=True, slots=True)
class EdgeUser:
    """Who nginx's workers run as when its master is root."""

    name: str
    uid: int
    group: str
    gid: int


@dataclass(frozen=True, slots=True)
class ArtifactsFolder:
    """The router's folder of images. `stack` is the stack's own folder, somewhere above it: all between is ours."""

    path: Path
    stack: Path


@dataclass(frozen=True, slots=True)
class Tls:
    """What the edge shows and proves. `id` changes with the files' content, so that a new one is a reload.

    `plain_port` is where plain HTTP is answered, with a way to HTTPS alone and, from `challenges`, with what a
    certificate authority asks for; None: nowhere.
    """

    certificate: Path
    key: Path
    id: str
    plain_port: int | None = None
    challenges: Path | None = None


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """`folder` keeps the configuration and nginx's pid file, `run` is a short one for temporary files.

    `socket` is the router's. `artifacts` is what the edge sends images from when the router says so; None where
    the edge may not read there. `user` is None unless the edge is started by root. `setting` names where the port
    is set in the stack file.
    """

    host: str
    port: int
    socket: Path
    folder: Path
    run: Path
    logs: Path
    user: EdgeUser | None = None
    workers: int = 2
    max_body_bytes: int = MAX_BODY_BYTES
    artifacts: ArtifactsFolder | None = None
    setting: str = "router.edge.port"
    tls: Tls | None = None
    more_sockets: tuple[Path, ...] = ()
    """Of further routers on this host; they take turns, and when one is away the others have its requests."""


class Dialect(StrEnum):
    """Whose error format a path speaks."""

    SEED = "seed"
    OPENAI = "openai"
    IDEOGRAM = "ideogram"
    PROBLEM = "problem"

    @property
    def media_type(self) -> str:
        return "application/problem+json" if self is Dialect.PROBLEM else "application/json"


PATHS = {
    Dialect.SEED: r"/generate",
    Dialect.OPENAI: r"/v1/(images|models|files|batches)",
    Dialect.IDEOGRAM: r"/(v1/(ideogram-v[34]|generations)|remix|edit|reframe|upscale|describe)",
}
"""Where each is spoken; every other path speaks problem details (RFC 9457)."""


_REFUSALS = "/.edge"
"""Where nginx keeps its own answers. Not named locations (`@…`): those fail without an address, and a
malformed request has none."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that nginx makes itself: `causes` are its own status codes for it, `status` what is answered.

    `type` and `title` are the router's where it refuses the same (`router.api.refusals`).
    """

    status: int
    causes: tuple[int, ...]
    type: str
    title: str
    detail: str
    retry_after: int | None = None

    def body(self, dialect: Dialect) -> str:
        match dialect:
            case Dialect.SEED:
                return json.dumps({"detail": self.detail})
            case Dialect.IDEOGRAM:
                return json.dumps({"error": self.detail})
            case Dialect.OPENAI:
                kind = "server_error" if self.status >= 500 else "invalid_request_error"
                return json.dumps({"error": {"message": self.detail, "type": kind, "param": None, "code": self.type}})
            case Dialect.PROBLEM:
                described = {"type": self.type, "title": self.title, "status": self.status, "detail": self.detail}
                return json.dumps(described | {"errors": []})


def refusals(max_body_bytes: int) -> tuple[Refusal, ...]:
    """All that nginx refuses by itself. 494 is its private code for a header that is too large."""
    malformed = "this is not an HTTP request that the edge understands"
    large = f"the body is larger than {max_body_bytes} bytes"
    away = "the router is away or restarting; send the request again"
    return (
        Refusal(400, (400, 501, 505), "bad_request", "The request is malformed", malformed),
        Refusal(404, (404,), "not_found", "There is nothing here", "there is nothing at this address"),
        Refusal(405, (405,), "method_not_allowed", "This method is not allowed here", "use another method"),
        Refusal(413, (413,), "body_too_large", "The body is too large", large),
        Refusal(414, (414,), "uri_too_long", "The address is too long", f"the address is over {MAX_HEADER_KIB} KiB"),
        Refusal(416, (416,), "range_not_satisfiable", "There is no such range", "the image is shorter than this range"),
        Refusal(431, (494,), "headers_too_large", "A header is too large", f"a header is over {MAX_HEADER_KIB} KiB"),
        Refusal(500, (500,), "internal", "The edge failed", "the edge failed; its log says why"),
        Refusal(503, (502, 503, 504), "unavailable", "The router cannot answer just now", away, RETRY_AFTER_S),
    )


def edge_config(settings: EdgeSettings) -> str:
    """The whole configuration file. Raises EdgeError for a path that nginx could not be told."""
    answers = refusals(settings.max_body_bytes)
    return "\n".join(
        (
            *_process(settings),
            "http {",
            *_indented(_limits(settings)),
            *_indented(_logging(settings)),
            *_indented(_upstream(settings)),
            *_indented(_dialects()),
            "  server {",
            *_indented(_server(settings, answers), 4),
            "  }",
            *_indented(_plain_server(settings)),
            "}",
            "",
        )
    )


def _process(settings: EdgeSettings) -> Iterator[str]:
    # Without root there is no other user to become, and nginx would only warn.
    if settings.user:
        yield f"user {settings.user.name} {settings.user.group};"
    yield f"worker_processes {settings.workers};"
    yield "worker_rlimit_nofile 16384;"
    yield f"pid {_quoted(settings.folder / 'nginx.pid')};"
    yield "error_log stderr warn;  # the unit's log"
    yield "events { worker_connections 8192; }  # a waiting client takes two"


def _limits(settings: EdgeSettings) -> Iterator[str]:
    yield "server_tokens off;"
    # The router names every type, so there need be no table of them, and the machine's need not exist.
    yield "default_type application/octet-stream;"
    # A body fits into its buffer and is with the edge before the router hears of it: no slow sender holds
    # the router, and nothing touches the disk.
    yield f"client_max_body_size {settings.max_body_bytes};"
    yield f"client_body_buffer_size {settings.max_body_bytes};"
    yield f"large_client_header_buffers 4 {MAX_HEADER_KIB}k;"
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        yield f"{kind}_temp_path {_quoted(settings.run / 'edge' / kind)};"


def _logging(settings: EdgeSettings) -> Iterator[str]:
    fields = {
        "time": "$time_iso8601",
        "request_id": "$edge_request_id",
        "client": "$remote_addr",
        "method": "$asked_method",
        "path": "$asked_path",
        "status": "$status",
        "bytes_in": "$request_length",
        "bytes_out": "$bytes_sent",
        "seconds": "$request_time",
        "router_seconds": "$upstream_response_time",
        "job": "$upstream_http_x_job_id",
        "user_agent": "$http_user_agent",
    }
    # As they were asked for: a refusal changes $uri and $request_method. Without the query, which can hold
    # an artifact's signature.
    yield r'map $request $asked_method { "~^(?<first_word>\S+) " $first_word; }'
    yield r'map $request $asked_path { "~^\S+ (?<without_query>[^? ]*)" $without_query; }'
    yield f"log_format edge escape=json '{json.dumps(fields)}';"
    yield f"access_log {_quoted(settings.logs / 'edge.access.log')} edge;"
    # A caller's own id is kept if it can do no harm in a log or a header.
    own = '"~^[A-Za-z0-9._-]{1,64}$" $http_x_request_id;'
    yield f"map $http_x_request_id $edge_request_id {{ default $request_id; {own} }}"


def _upstream(settings: EdgeSettings) -> Iterator[str]:
    yield "upstream router {"
    for socket in (settings.socket, *settings.more_sockets):
        # One failure must not close the door for the next ten seconds. A router that is not there is passed over at
        # once, for no request was sent to it yet.
        yield f"  server {_quoted(f'unix:{socket}')} max_fails=0;"
    yield "  keepalive 32;"
    yield f"  keepalive_timeout {ROUTER_KEEPALIVE_S}s;"
    yield "}"


def _dialects() -> Iterator[str]:
    # By the request line: it is all that there is of a request whose address was too long to be read.
    patterns = " ".join(rf'"~^\S+ {path}[/? ]" {dialect};' for dialect, path in PATHS.items())
    yield f"map $request $dialect {{ default {Dialect.PROBLEM}; {patterns} }}"


def _server(settings: EdgeSettings, answers: tuple[Refusal, ...]) -> Iterator[str]:
    yield f"listen {_address(settings.host, settings.port)}{' ssl' if settings.tls else ''};"
    if settings.tls:
        yield from _tls(settings.tls)
    yield from _headers(settings)
    for answer in answers:
        causes = " ".join(str(cause) for cause in answer.causes)
        # In the server and by a variable: many of these happen before a location is chosen.
        yield f"error_page {causes} ={answer.status} {_REFUSALS}/$dialect/{answer.status};"
    yield "location / {"
    yield from _indented(_proxy())
    yield "}"
    for path in LARGE_PATHS:
        yield f"location = {path} {{"
        # Too large for memory: it goes through a file, so that no slow sender holds the router here either.
        # A little more than the router takes, so that it is the router who says what is too much.
        yield f"  client_max_body_size {MAX_BATCH_BYTES + 2**20};"
        yield from _indented(_proxy())
        yield "}"
    if settings.artifacts is not None:
        yield f"location {ARTIFACTS} {{"
        yield from _indented(_images(settings, settings.artifacts.path))
        yield "}"
    for answer in answers:
        for dialect in Dialect:
            yield f"location = {_REFUSALS}/{dialect}/{answer.status} {{"
            yield f"  internal; types {{ }} default_type {dialect.media_type};"
            if answer.retry_after is not None:
                yield from _indented(_headers(settings))  # one add_header here hides the server's
                yield f"  add_header Retry-After {answer.retry_after} always;"
            yield f"  return {answer.status} '{answer.body(dialect)}';"
            yield "}"


def _proxy() -> Iterator[str]:
    yield "proxy_pass http://router;"
    yield "proxy_http_version 1.1;"
    yield 'proxy_set_header Connection "";'
    yield "proxy_set_header Host $http_host;"
    yield "proxy_set_header X-Request-Id $edge_request_id;"
    # Set, not appended: the edge is the first that we trust, so what a client says here counts for nothing.
    yield "proxy_set_header X-Forwarded-For $remote_addr;"
    yield "proxy_set_header X-Forwarded-Proto $scheme;"
    yield "proxy_set_header X-Forwarded-Host $http_host;"
    yield "proxy_hide_header X-Request-Id;"  # the router repeats it
    yield "proxy_buffering off;"  # progress events leave as they come
    yield "proxy_connect_timeout 5s;"
    yield f"proxy_read_timeout {READ_TIMEOUT_S}s;"


def _images(settings: EdgeSettings, folder: Path) -> Iterator[str]:
    """Files that the router names by X-Accel-Redirect; to clients this location does not exist."""
    yield "internal;"
    yield f"alias {_quoted(f'{folder}/')};"
    yield f"disable_symlinks on from={_quoted(folder)};"
    yield "sendfile on; tcp_nopush on;"
    # The router's, which is the image's digest; nginx's own would change with a restored backup's times.
    yield "etag off;"
    yield "add_header ETag $upstream_http_etag;"
    yield from _headers(settings)  # one add_header here hides the server's


def _headers(settings: EdgeSettings) -> Iterator[str]:
    yield "add_header X-Request-Id $edge_request_id always;"
    if settings.tls:
        # This host alone: what else its domain serves is not ours to promise for.
        yield f'add_header Strict-Transport-Security "max-age={HSTS_S}" always;'


def _tls(tls: Tls) -> Iterator[str]:
    """Mozilla's intermediate configuration: every client of the last ten years, and nothing that is broken."""
    yield f"# certificate {tls.id}"
    yield f"ssl_certificate {_quoted(tls.certificate)};"
    yield f"ssl_certificate_key {_quoted(tls.key)};"
    yield "ssl_protocols TLSv1.2 TLSv1.3;"
    yield f"ssl_ciphers {':'.join(CIPHERS)};"
    yield "ssl_prefer_server_ciphers off;"
    yield "ssl_session_cache shared:edge:10m;"
    yield "ssl_session_timeout 1d;"
    yield "ssl_session_tickets off;"


def _plain_server(settings: EdgeSettings) -> Iterator[str]:
    """Port 80: certificates are proved there, and browsers sent on. A request with a key gets no second chance."""
    if settings.tls is None or settings.tls.plain_port is None:
        return
    port = "" if settings.port == 443 else f":{settings.port}"
    yield "server {"
    yield f"  listen {_address(settings.host, settings.tls.plain_port)};"
    if settings.tls.challenges:
        yield f"  location {CHALLENGES} {{"
        yield f"    root {_quoted(settings.tls.challenges)};"
        yield "    types { } default_type text/plain;"
        yield "  }"
    yield "  location / {"
    yield f"    if ($request_method !~ ^(GET|HEAD)$) {{ return 403 '{INSECURE}\n'; }}"
    yield f"    return 301 https://$host{port}$request_uri;"
    yield "  }"
    yield "}"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _indented(lines: Iterator[str], by: int = 2) -> Iterator[str]:
    return (" " * by + line for line in lines)


def _quoted(path: Path | str) -> str:
    """A path as one word of nginx's language, which has no way to say a dollar sign."""
    text = str(path)
    if re.search(r"[$\x00-\x1f]", text):
        raise EdgeError(f"nginx cannot be given the path {text!r}: move the checkout to one without '$'")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
