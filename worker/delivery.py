"""How a serverless job's image reaches its caller: in the answer, or in a bucket behind a signed URL.

RunPod carries an answer of at most some megabytes; a PNG of 2048x2048 is more. The bucket is named by the
variables that RunPod's own tools read (`BUCKET_*`).
"""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.contract import ImageFormat
from worker.settings import SettingsError

if TYPE_CHECKING:
    from obstore.store import S3Store
    from pydantic_core import ErrorDetails

UPLOAD_S = 60
"""All tries of one upload together."""


class DeliveryError(Exception):
    """The image was made and cannot be handed over; the message is for whoever asked for it."""


class Delivery(StrEnum):
    """How an image is to be handed over. `auto`: in the answer if it fits, else by URL."""

    AUTO = "auto"
    INLINE = "inline"
    URL = "url"


class Bucket(BaseSettings):
    """Where images are uploaded to, and for how many seconds their URLs are good."""

    model_config = SettingsConfigDict(env_prefix="BUCKET_", env_ignore_empty=True, frozen=True, extra="ignore")

    endpoint_url: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    name: str | None = None
    region: str = "us-east-1"
    url_lifetime_s: Annotated[int, Field(ge=60, le=604_800)] = 604_800

    @model_validator(mode="after")
    def _whole_or_absent(self) -> Self:
        needed = {
            "ENDPOINT_URL": self.endpoint_url,
            "ACCESS_KEY_ID": self.access_key_id,
            "SECRET_ACCESS_KEY": self.secret_access_key,
            "NAME": self.name,
        }
        absent = [f"BUCKET_{name}" for name, value in needed.items() if not value]
        if absent and len(absent) < len(needed):
            raise ValueError(f"{', '.join(absent)}: missing, while the other BUCKET_ variables are set")
        if self.endpoint_url and not _is_address(self.endpoint_url):
            raise ValueError("BUCKET_ENDPOINT_URL: must be the storage's address, as in https://s3.example.com")
        return self

    @property
    def described(self) -> bool:
        """Whether there is one."""
        return bool(self.name)

    @classmethod
    def from_environment(cls) -> Self:
        """Raises SettingsError."""
        try:
            return cls()
        except ValidationError as error:
            said = "; ".join(map(_said, error.errors(include_input=False)))
            raise SettingsError(said) from None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _said(error: ErrorDetails) -> str:
    variable = "".join(f"BUCKET_{name}: ".upper() for name in error["loc"] if isinstance(name, str))
    return variable + error["msg"].removeprefix("Value error, ")


class Deliverer:
    """Hands images over. `max_inline` is the bytes of an answer that its carrier takes."""

    def __init__(self, bucket: Bucket, max_inline: int) -> None:
        self._bucket = bucket
        self._max_inline = max_inline
        self._store = _opened(bucket) if bucket.described else None

    async def deliver(self, name: str, data: bytes, form: ImageFormat, how: Delivery) -> dict[str, str]:
        """The answer's fields for an image of that name: `image`, or `image_url` and `expires_at`.

        Raises DeliveryError.
        """
        fits = 4 * ((len(data) + 2) // 3) <= self._max_inline
        if how is not Delivery.URL and fits:
            return {"image": base64.b64encode(data).decode("ascii")}
        if how is Delivery.INLINE or (how is Delivery.AUTO and self._store is None):
            raise DeliveryError(
                f"the image is made and has {len(data) / 1e6:.1f} MB; an answer carries "
                f"{self._max_inline * 3 / 4e6:.1f} MB of image. {_smaller(form)}, or have it uploaded: set "
                "BUCKET_ENDPOINT_URL, BUCKET_NAME, "
                "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY on the endpoint, and leave delivery out"
            )
        return await self._uploaded(f"{name}.{form}", data, form)

    async def _uploaded(self, name: str, data: bytes, form: ImageFormat) -> dict[str, str]:
        import obstore  # noqa: PLC0415

        if self._store is None:
            raise DeliveryError("delivery: url needs a bucket; set the BUCKET_ variables on the endpoint")
        lifetime = timedelta(seconds=self._bucket.url_lifetime_s)
        try:
            await obstore.put_async(
                self._store, name, data, attributes={"Content-Type": form.media_type}, use_multipart=False
            )
            url = await obstore.sign_async(self._store, "GET", name, lifetime)
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library's is no Exception
            # Its long message quotes the request; the first words say what happened.
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DeliveryError(
                f"the image is made and could not be uploaded to the bucket {self._bucket.name}: {said}. Check the "
                "BUCKET_ variables and that the key may write there, or ask for a smaller image with delivery inline"
            ) from error
        return {"image_url": url, "expires_at": (datetime.now(UTC) + lifetime).isoformat(timespec="seconds")}


def _smaller(form: ImageFormat) -> str:
    return "Ask for format webp or jpeg" if form is ImageFormat.PNG else "Ask for less quality or a smaller image"


def _opened(bucket: Bucket) -> S3Store:
    from obstore.store import S3Store  # noqa: PLC0415

    endpoint, secret = bucket.endpoint_url or "", bucket.secret_access_key
    return S3Store(
        bucket.name or "",
        config={
            "endpoint": endpoint,
            "region": bucket.region,
            "access_key_id": bucket.access_key_id or "",
            "secret_access_key": secret.get_secret_value() if secret else "",
            "virtual_hosted_style_request": False,
        },
        client_options={"allow_http": urlsplit(endpoint).scheme == "http", "timeout": timedelta(seconds=UPLOAD_S)},
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=UPLOAD_S)},
    )
