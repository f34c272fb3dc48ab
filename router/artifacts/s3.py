"""Artifacts as objects of one bucket, for any number of router hosts: Amazon's S3, or what speaks its language.

The client is obstore, Rust's object_store: asynchronous, typed, and a fiftieth of a second to import
(docs/adr/0011). It signs, retries what may be retried within `RETRY`, and sends the digest along, so that the
service refuses bytes that changed on the way. Clients are handed URLs that the bucket itself honours.
"""

from __future__ import annotations

import asyncio
import configparser
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from router.artifacts import MARK, NAMED, AtUrl, digest_of, fan, first_of, path_of
from router.errors import ArtifactError, ArtifactGoneError
from router.jobs import Image

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential

log = structlog.get_logger(__name__)

PIECE = 2**20
"""Bytes of a file that are read at once, at the least."""
PART = 16 * 2**20
"""Bytes of a file that are sent at once. A bucket takes 10,000 parts: 160 GB."""
ANSWER_S = 20.0
"""How long one request may take; an image is a few megabytes."""
CONNECT_S = 5.0
RETRIES = 4
RETRY_S = 30.0
"""All tries of one call together. A call that fails then is an ArtifactError, and the attempt is lost, not the job."""
LISTED = 500
"""Images whose names are asked after together."""
CREDENTIALS_S = 60
"""How long credentials from a file are used before it is read again: whoever renews them replaces the file."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where the objects are. `prefix` is the folder in the bucket, without slashes at its ends, or empty.

    `endpoint` is None for Amazon's own. Clients are sent to `public_endpoint`, if it differs. `credentials` is
    a file in the format of AWS's shared credentials; None takes what the machine has (its role, or its
    environment).
    """

    name: str
    prefix: str = ""
    region: str = "us-east-1"
    endpoint: str | None = None
    public_endpoint: str | None = None
    credentials: Path | None = None

    def __str__(self) -> str:
        where = f"s3://{self.name}/{self.prefix}".rstrip("/")
        return f"{where} at {self.endpoint}" if self.endpoint else where


class S3Artifacts:
    """Raises ArtifactError if the credentials cannot be read."""

    def __init__(self, bucket: Bucket, retries: int = RETRIES, answer_s: float = ANSWER_S) -> None:
        self._bucket = bucket
        if bucket.credentials is not None:
            read_credentials(bucket.credentials)  # now, while somebody can still read the message
        self._store = _open(bucket, bucket.endpoint, retries, answer_s)
        self._public = self._store
        if bucket.public_endpoint not in (None, bucket.endpoint):
            self._public = _open(bucket, bucket.public_endpoint, retries, answer_s)

    async def put(self, generation_id: str, data: bytes, media_type: str, sha256: str | None = None) -> Image:
        digest = sha256 or await digest_of(data)
        path = path_of(generation_id, digest, media_type)
        try:
            await obstore.put_async(
                self._store, path, data, attributes={"Content-Type": media_type}, use_multipart=False
            )
        except (BaseError, OSError) as error:
            raise self._failed(f"the image of {generation_id} could not be stored", error) from error
        return Image(path=path, sha256=digest, bytes=len(data), media_type=media_type)

    async def read(self, image: Image) -> bytes:
        try:
            answer = await obstore.get_async(self._store, image.path)
            data = bytes(await answer.bytes_async())
        except FileNotFoundError as error:
            raise ArtifactGoneError(
                f"the image {image.path} is not in {self._bucket}; was it removed by hand?"
            ) from error
        except (BaseError, OSError) as error:
            raise self._failed(f"the image {image.path} could not be read", error) from error
        if await digest_of(data) != image.sha256:
            raise ArtifactGoneError(f"the image {image.path} in {self._bucket} is not the one that was stored")
        return data

    async def draft(self, path: str) -> S3Draft:
        return S3Draft(self._store, path, self._failed)

    async def stream(self, path: str, begin: int = 0) -> AsyncIterator[bytes]:
        try:
            options: GetOptions = {"range": {"offset": begin}} if begin else {}
            answer = await obstore.get_async(self._store, path, options=options)
            async for data in answer.stream(min_chunk_size=PIECE):
                yield bytes(data)
        except FileNotFoundError as error:
            raise ArtifactGoneError(f"the file {path} is not in {self._bucket}; was it removed by hand?") from error
        except (BaseError, OSError) as error:
            raise self._failed(f"the file {path} could not be read", error) from error

    async def place(self, image: Image, lifetime_s: int) -> AtUrl:
        """Signs only: whether the object is there is for the bucket to say."""
        try:
            url = await obstore.sign_async(self._public, "GET", image.path, timedelta(seconds=lifetime_s))
        except (BaseError, OSError) as error:
            raise self._failed(f"no URL could be signed for {image.path}", error) from error
        return AtUrl(url)

    async def keep_only(self, job_id: str, image: Image | None) -> None:
        if image is not None and first_of(job_id, image):
            return
        kept = None if image is None else image.path
        doing = f"what lost attempts at {job_id} left could not be removed"
        folder, beginning = fan(job_id), f"{fan(job_id)}/{job_id}."
        try:
            # object_store lists by whole folders; from just before the job's first name on, and no further.
            async for found in obstore.list(self._store, prefix=folder, offset=beginning):
                paths = [entry["path"] for entry in found]
                await asyncio.gather(
                    *(
                        obstore.delete_async(self._store, path)
                        for path in paths
                        if path.startswith(beginning) and path != kept
                    )
                )
                if not all(path.startswith(beginning) for path in paths):
                    break
        except (BaseError, OSError) as error:
            raise self._failed(doing, error) from error

    async def older_than(self, age_s: float) -> AsyncIterator[Sequence[str]]:
        before = datetime.now(UTC) - timedelta(seconds=age_s)
        try:
            async for found in obstore.list(self._store, chunk_size=LISTED):
                yield [entry["path"] for entry in found if _stored(entry["path"]) and entry["last_modified"] < before]
        except (BaseError, OSError) as error:
            raise self._failed("the images could not be listed", error) from error

    async def remove(self, paths: Sequence[str]) -> None:
        try:
            await asyncio.gather(*(obstore.delete_async(self._store, path) for path in paths))
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise self._failed("an image could not be removed", error) from error

    async def mark(self) -> str | None:
        try:
            answer = await obstore.get_async(self._store, MARK)
            return bytes(await answer.bytes_async()).decode().strip()
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise self._failed("the mark could not be read", error) from error

    async def set_mark(self, mark: str) -> str:
        try:
            await obstore.put_async(self._store, MARK, f"{mark}\n".encode(), mode="create", use_multipart=False)
        except AlreadyExistsError:
            return await self.mark() or mark
        except (BaseError, OSError) as error:
            raise self._failed("the mark could not be set", error) from error
        return mark

    async def check(self) -> None:
        path = f"probe/{os.getpid()}"
        try:
            await obstore.put_async(self._store, path, b"whether an image could be stored here\n", use_multipart=False)
            await obstore.delete_async(self._store, path)
        except (BaseError, OSError) as error:
            raise self._failed("no image can be stored", error) from error

    def _failed(self, what: str, error: Exception) -> ArtifactError:
        return ArtifactError(f"{what} in {self._bucket}: {explain(str(error))}")


def _stored(path: str) -> bool:
    return path.rpartition("/")[2].startswith(NAMED)


class S3Draft:
    """Goes to the bucket in parts as it is written; until the last one there is no object. Parts that a killed router
    leaves are the bucket's to remove (docs/images.md)."""

    def __init__(self, store: S3Store, path: str, failed: Callable[[str, Exception], ArtifactError]) -> None:
        self._store, self._path, self._describe = store, path, failed
        self._kept = False
        self._file = obstore.open_writer_async(
            store, path, buffer_size=PART, attributes={"Content-Type": "application/jsonl"}
        )

    async def write(self, data: bytes) -> None:
        try:
            await self._file.write(data)
        except (BaseError, OSError) as error:
            raise self._failed(error) from error

    async def keep(self) -> None:
        try:
            await self._file.close()
        except (BaseError, OSError) as error:
            raise self._failed(error) from error
        self._kept = True

    async def drop(self) -> None:
        """There is no other way to have the parts removed than to end the file."""
        if self._kept:
            return
        try:
            await self._file.close()
            await obstore.delete_async(self._store, self._path)
        except (BaseError, OSError) as error:
            log.warning("draft_left", path=self._path, error=explain(str(error)))

    def _failed(self, error: Exception) -> ArtifactError:
        return self._describe(f"the file {self._path} could not be stored", error)


ADVICE: Mapping[str, str] = {
    "SlowDown": "the service asked us to slow down, and still did after several tries",
    "ServiceUnavailable": "the service was not available in several tries",
    "NoSuchBucket": "there is no such bucket; make it, or correct its name in the router's settings",
    "ExpiredToken": "the credentials have expired; put new ones into the credentials file",
    "InvalidAccessKeyId": "the access key is not known there; check the credentials file",
    "SignatureDoesNotMatch": "the signature was not accepted; check the secret key and the region",
    "RequestTimeTooSkewed": "this machine's clock is too far off; set it by NTP",
    "AccessDenied": "access was denied; the key needs s3:GetObject, PutObject, DeleteObject and ListBucket there",
    "BadDigest": "the bytes changed on their way; nothing was stored",
    "XAmzContentChecksumMismatch": "the bytes changed on their way; nothing was stored",
}
_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]*)")


def explain(said: str) -> str:
    """The client's long message in a few words: the service's own code, and what to do."""
    code = _CODE.search(said)
    if code:
        return f"{ADVICE.get(code[1], 'the service refused')} ({code[1]})"
    if "kind: Timeout" in said:
        return "the service did not answer in time"
    if "kind: Connect" in said or "error sending request" in said:
        return "no connection could be made, or it broke"
    status = _STATUS.search(said)
    if status:
        return f"the service answered {status[1].strip()}"
    first = said.strip().partition("\n")[0]
    return first.partition("ArtifactError: ")[2] or first[:200] or "the client failed"


def read_credentials(path: Path) -> S3Credential:
    """The `[default]` section of a file in the format of AWS's shared credentials. Raises ArtifactError."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        if path.stat().st_mode & 0o077:
            raise ArtifactError(f"{path}: holds a secret that other users may touch; run: chmod 600 {path}")
        parser.read_string(path.read_text())
        section = parser["default"]
        credential: S3Credential = {
            "access_key_id": section["aws_access_key_id"],
            "secret_access_key": section["aws_secret_access_key"],
            "token": section.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + timedelta(seconds=CREDENTIALS_S),
        }
    except OSError as error:
        raise ArtifactError(f"{path}: the S3 credentials cannot be read ({error.strerror})") from error
    except (configparser.Error, KeyError, UnicodeDecodeError):
        # Without the cause: its message may quote the line, and the line may be the secret.
        raise ArtifactError(
            f"{path}: should hold a section [default] with aws_access_key_id and aws_secret_access_key"
        ) from None
    return credential


def _open(bucket: Bucket, endpoint: str | None, retries: int, answer_s: float) -> S3Store:
    # Few are deleted at once, and not every service knows how to delete many.
    config: S3Config = {"region": bucket.region, "checksum_algorithm": "SHA256", "disable_bulk_delete": True}
    if endpoint is not None:
        config["endpoint"] = endpoint
    else:
        config["virtual_hosted_style_request"] = True
    client: ClientConfig = {
        "timeout": timedelta(seconds=answer_s),
        "connect_timeout": timedelta(seconds=min(CONNECT_S, answer_s)),
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
    }
    retry: RetryConfig = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
    }
    file = bucket.credentials
    return S3Store(
        bucket.name,
        prefix=bucket.prefix or None,
        config=config,
        client_options=client,
        retry_config=retry,
        credential_provider=None if file is None else lambda: read_credentials(file),
    )
