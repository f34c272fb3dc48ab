"""Why a batch, or one of its lines, ends without what was asked."""

from __future__ import annotations


class BatchError(Exception):
    """The batch cannot begin or go on. The message is for people; what is done is kept."""


class NotMadeError(Exception):
    """One line got no image, and trying again would end the same; the others go on."""

    def __init__(self, kind: str, detail: str, job: str | None = None) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail, self.job = kind, detail, job


class NotNowError(Exception):
    """One line cannot be made by anybody who is there now; the others go on. Asking again makes sense in
    `retry_after_s` seconds."""

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class BadLineError(ValueError):
    """A line that no image can be made of; the message says why, without the line's number."""
