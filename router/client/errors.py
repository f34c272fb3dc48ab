"""What can go wrong between a client and a router, as a caller would want to tell it apart."""

from __future__ import annotations

from router.contract import JobView


class RouterClientError(Exception):
    """The root. The message says what was asked of whom, and what came of it."""


class RouterAwayError(RouterClientError):
    """No answer: nothing listens there, or the connection broke or fell silent. Trying again may help."""


class RouterAnswerError(RouterClientError):
    """An answer that is not a router's: probably another program listens at this address."""


class RouterRefusedError(RouterClientError):
    """The router answered with an error. `status` is HTTP's, `detail` the router's own words."""

    def __init__(self, call: str, status: int, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{call}: {status}, {detail}")
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


class RouterUnauthorizedError(RouterRefusedError):
    """401: the key is missing or is not this router's."""


class RouterNotFoundError(RouterRefusedError):
    """404: there is no such worker or job, or it belongs to another key."""


class RouterUnavailableError(RouterRefusedError):
    """429 or 503: not now. `retry_after_s` is the router's own guess in seconds, if it gave one."""


class RouterPoolUnavailableError(RouterUnavailableError):
    """503: nobody takes jobs of this request's pool."""


class RouterUnmakeableError(RouterUnavailableError):
    """503 for this request alone: workers of its pool take jobs, and none of them can make this one."""


class JobEndedError(RouterClientError):
    """The job ended without an image; `job` says how."""

    def __init__(self, job: JobView) -> None:
        why = f"{job.error.type}: {job.error.detail}" if job.error else "no reason was given"
        super().__init__(f"job {job.id} {job.state} after {job.attempt} attempt(s): {why}")
        self.job = job
