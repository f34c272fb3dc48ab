"""An S3 service on loopback: one bucket, path style, held to Amazon's published description of its wire.

Every request's signature is checked (Signature Version 4, in the header or in the query:
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html), and every body's digest.
Faults are armed by name and answered as Amazon does (its list of error codes).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

REGION = "eu-central-1"
MIN_PART = 5 * 2**20
"""Bytes of every part but the last."""
SKEW = timedelta(minutes=15)
STATUS = {
    "SlowDown": 503,
    "ExpiredToken": 400,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "InvalidAccessKeyId": 403,
    "SignatureDoesNotMatch": 403,
    "AccessDenied": 403,
    "RequestTimeTooSkewed": 403,
    "BadDigest": 400,
    "XAmzContentSHA256Mismatch": 400,
    "PreconditionFailed": 412,
    "NoSuchUpload": 404,
    "InvalidPart": 400,
}


class RefusedError(Exception):
    """One of Amazon's error codes."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class EmulatedS3:
    """`faults` are answered to the next requests, one each; "silence" is a request that is never answered,
    "rot" hands out bytes that changed."""

    port: int = 0
    bucket: str = "images"
    access_key: str = "AKIATEST"
    secret_key: str = field(default="a secret key", repr=False)
    token: str | None = None
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    modified: dict[str, datetime] = field(default_factory=dict)
    """When each object was written; a test may make it older."""
    page: int = 1000
    """Objects in one answer to a listing."""
    faults: deque[str] = field(default_factory=deque)
    asked: list[str] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        self.asked.append(f"{request.method} {scope['raw_path'].decode()}")
        try:
            response = await self._answer(request, body)
        except RefusedError as error:
            xml = f"<?xml version='1.0'?><Error><Code>{error.code}</Code><Message>emulated</Message></Error>"
            response = Response(xml, STATUS[error.code], media_type="application/xml")
        await response(scope, receive, send)

    async def _answer(self, request: Request, body: bytes) -> Response:
        fault = self.faults.popleft() if self.faults else None
        if fault == "silence":
            await self.closing.wait()
        if fault in STATUS:
            raise RefusedError(fault)
        verify(request, body, self)
        bucket, _, key = request.url.path.removeprefix("/").partition("/")
        if bucket != self.bucket:
            raise RefusedError("NoSuchBucket")
        if "uploads" in request.query_params or "uploadId" in request.query_params:
            return self._in_parts(key, request, body)
        match request.method:
            case "PUT":
                return self._put(key, request, body)
            case "GET" if not key:
                return self._list(request)
            case "GET" | "HEAD":
                return self._get(key, request, rot=fault == "rot")
            case "DELETE":
                self.objects.pop(key, None)
                return Response(status_code=204)
            case _:
                raise RefusedError("AccessDenied")

    def _in_parts(self, key: str, request: Request, body: bytes) -> Response:
        match request.method:
            case "POST" if "uploads" in request.query_params:
                return self._begin(key)
            case "POST":
                return self._complete(key, request, body)
            case "PUT":
                return self._part(request, body)
            case _:
                self.parts.pop(request.query_params["uploadId"], None)
                return Response(status_code=204)

    def _put(self, key: str, request: Request, body: bytes) -> Response:
        checksum = request.headers.get("x-amz-checksum-sha256")
        if checksum is not None and base64.b64decode(checksum) != hashlib.sha256(body).digest():
            raise RefusedError("BadDigest")
        if request.headers.get("if-none-match") == "*" and key in self.objects:
            raise RefusedError("PreconditionFailed")
        if source := request.headers.get("x-amz-copy-source"):
            return self._copy(source, key)
        self.objects[key] = body, request.headers.get("content-type", "binary/octet-stream")
        self.modified[key] = datetime.now(UTC)
        return Response(headers={"ETag": _etag(body)})

    def _copy(self, source: str, key: str) -> Response:
        bucket, _, name = unquote(source).removeprefix("/").partition("/")
        if bucket != self.bucket or name not in self.objects:
            raise RefusedError("NoSuchKey")
        self.objects[key], self.modified[key] = self.objects[name], datetime.now(UTC)
        moment = f"<LastModified>{self._written(key)}</LastModified>"
        xml = f"<CopyObjectResult>{moment}<ETag>{_etag(self.objects[key][0])}</ETag></CopyObjectResult>"
        return Response(f"<?xml version='1.0'?>{xml}", media_type="application/xml")

    def _begin(self, key: str) -> Response:
        upload = f"upload-{len(self.parts)}"
        self.parts[upload] = {}
        told = f"<Bucket>{self.bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
        xml = f"<?xml version='1.0'?><InitiateMultipartUploadResult>{told}</InitiateMultipartUploadResult>"
        return Response(xml, media_type="application/xml")

    def _part(self, request: Request, body: bytes) -> Response:
        parts = self.parts.get(request.query_params["uploadId"])
        if parts is None:
            raise RefusedError("NoSuchUpload")
        parts[int(request.query_params["partNumber"])] = body
        return Response(headers={"ETag": _etag(body)})

    def _complete(self, key: str, request: Request, body: bytes) -> Response:
        parts = self.parts.pop(request.query_params["uploadId"], None)
        if parts is None:
            raise RefusedError("NoSuchUpload")
        named = [int(number) for number in re.findall(rb"<PartNumber>([0-9]+)</PartNumber>", body)]
        if named != sorted(parts) or any(len(parts[number]) < MIN_PART for number in named[:-1]):
            raise RefusedError("InvalidPart")
        self.objects[key] = b"".join(parts[number] for number in named), "application/jsonl"
        told = f"<ETag>{_etag(body)}</ETag>"
        xml = f"<?xml version='1.0'?><CompleteMultipartUploadResult>{told}</CompleteMultipartUploadResult>"
        return Response(xml, media_type="application/xml")

    def _get(self, key: str, request: Request, *, rot: bool) -> Response:
        if key not in self.objects:
            raise RefusedError("NoSuchKey")
        data, media_type = self.objects[key]
        headers = {"ETag": _etag(data), "Last-Modified": format_datetime(self._moment(key), usegmt=True)}
        ranged = re.fullmatch(r"bytes=([0-9]+)-", request.headers.get("range", ""))
        if ranged:
            begin = int(ranged[1])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            return Response(data[begin:], 206, headers=headers, media_type=media_type)
        return Response(data[::-1] if rot else data, headers=headers, media_type=media_type)

    def _list(self, request: Request) -> Response:
        prefix, after = request.query_params.get("prefix", ""), request.query_params.get("start-after", "")
        after = request.query_params.get("continuation-token", after)
        keys = [key for key in sorted(self.objects) if key.startswith(prefix) and key > after]
        delimiter = request.query_params.get("delimiter", "")
        folders = {found for key in keys if (found := _folder(key, prefix, delimiter)) is not None}
        keys = [key for key in keys if _folder(key, prefix, delimiter) is None]
        more, keys = len(keys) > self.page, keys[: self.page]
        token = f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>" if more else ""
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{self._written(key)}</LastModified>"
            f"<Size>{len(self.objects[key][0])}</Size><ETag>{_etag(self.objects[key][0])}</ETag></Contents>"
            for key in keys
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders))
        cut = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        xml = f"<?xml version='1.0'?><ListBucketResult>{cut}{rows}</ListBucketResult>"
        return Response(xml, media_type="application/xml")

    def _written(self, key: str) -> str:
        return self._moment(key).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _moment(self, key: str) -> datetime:
        """Of what a test has put in itself: when it was first looked at."""
        return self.modified.setdefault(key, datetime.now(UTC))


def _folder(key: str, prefix: str, delimiter: str) -> str | None:
    """What a listing shows in the key's place: all that begins alike up to the delimiter is one line."""
    head, found, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
    return f"{prefix}{head}{found}" if found else None


def verify(request: Request, body: bytes, service: EmulatedS3) -> None:
    """Raise RefusedError unless the request is signed by the service's one key, for now, and for this body."""
    query = parse_qsl(request.scope["query_string"].decode(), keep_blank_values=True)
    given = dict(query)
    if "X-Amz-Signature" in given:
        credential, signature = given["X-Amz-Credential"], given["X-Amz-Signature"]
        names, moment = given["X-Amz-SignedHeaders"], given["X-Amz-Date"]
        payload, lifetime = "UNSIGNED-PAYLOAD", timedelta(seconds=int(given["X-Amz-Expires"]))
        query = [(name, value) for name, value in query if name != "X-Amz-Signature"]
        token = given.get("X-Amz-Security-Token")
    else:
        header = request.headers.get("authorization", "")
        if not header.startswith("AWS4-HMAC-SHA256 "):
            raise RefusedError("AccessDenied")
        fields = dict(part.strip().split("=", 1) for part in header.removeprefix("AWS4-HMAC-SHA256 ").split(","))
        credential, signature, names = fields["Credential"], fields["Signature"], fields["SignedHeaders"]
        moment, payload = request.headers["x-amz-date"], request.headers["x-amz-content-sha256"]
        lifetime, token = SKEW, request.headers.get("x-amz-security-token")
        if payload != hashlib.sha256(body).hexdigest():
            raise RefusedError("XAmzContentSHA256Mismatch")
    key, _, scope = credential.partition("/")
    if key != service.access_key:
        raise RefusedError("InvalidAccessKeyId")
    if token != service.token:
        raise RefusedError("ExpiredToken")
    signed_at = datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if not -SKEW < datetime.now(UTC) - signed_at <= lifetime:
        raise RefusedError("RequestTimeTooSkewed" if lifetime is SKEW else "AccessDenied")
    if not hmac.compare_digest(signature, _signature(request, query, names, payload, (moment, scope), service)):
        raise RefusedError("SignatureDoesNotMatch")


def _signature(
    request: Request,
    query: list[tuple[str, str]],
    names: str,
    payload: str,
    signed: tuple[str, str],
    service: EmulatedS3,
) -> str:
    moment, scope = signed
    headers: Mapping[str, str] = request.headers
    canonical = "\n".join(
        (
            request.method,
            quote(request.url.path, safe="/-_.~"),
            "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(query)),
            *(f"{name}:{' '.join(headers[name].split())}" for name in names.split(";")),
            "",
            names,
            payload,
        )
    )
    text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{service.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'  # noqa: S324 - what Amazon's ETag is


@asynccontextmanager
async def emulated_s3(port: int = 0) -> AsyncIterator[EmulatedS3]:
    """The service, listening (on a free port, or the one that is named); gone when the block ends."""
    service = EmulatedS3()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        service.port = sock.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(service, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield service
        finally:
            service.closing.set()
            server.should_exit = True
            await serving


def write_credentials(path: Path, service: EmulatedS3) -> None:
    text = f"[default]\naws_access_key_id = {service.access_key}\naws_secret_access_key = {service.secret_key}\n"
    path.write_text(text + (f"aws_session_token = {service.token}\n" if service.token else ""))
    path.chmod(0o600)
