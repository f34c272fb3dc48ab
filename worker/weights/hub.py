"""What the hub says of a repository, and its refusals in words that say what to do and which page to visit.

The hub's token is read by its own client (`HF_TOKEN`, or a login of this user) and never appears in a message.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TypeVar

import httpx2  # what huggingface_hub speaks with
from huggingface_hub import HfApi, constants, errors, get_token, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import parse_ratelimit_headers

from worker.engine import LoadError

T = TypeVar("T")
OnWait = Callable[[str], None]
"""Told why a download stands still, in words for a person."""

IGNORED = (
    "*.md",
    "*.png",
    "*.jpg",
    "*.jpeg",
    "*.webp",
    "*.gif",
    "*.mp4",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.onnx",
    "*.msgpack",
    "*.h5",
    ".gitattributes",
    "*/.gitattributes",
)
"""What serves nobody here: pictures of the model's page, and the same weights in formats that can carry code."""
ASKS = 3
"""Times that the hub is asked the same question, while it is busy or out of reach."""
MAX_WAIT_S = 120.0
"""A hub that asks for more time than this gets it by a person's next try."""
TIMEOUT_S = 30.0
AGAIN = "run this again and it goes on where it stopped"


class WeightsError(LoadError):
    """Something about weights that a person has to know, said for that person."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a repository; `digest` is SHA-256 (64 digits) or git's (40)."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit. `gated`: its licence wants accepting on its page."""

    repository: str
    commit: str
    gated: bool
    licence: str | None
    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def page(repository: str) -> str:
    """Where a person reads about a repository and accepts its licence."""
    return f"{constants.ENDPOINT}/{repository}"


def listing(repository: str, on_wait: OnWait) -> Listing:
    """What the hub has under this name now. Raises WeightsError."""
    api = HfApi()

    def ask() -> Listing:
        info = api.model_info(repository, timeout=TIMEOUT_S)
        if info.sha is None:
            raise WeightsError(f"{repository} has no commit yet; see {page(repository)}")
        tree = api.list_repo_tree(repository, recursive=True, revision=info.sha)
        card = info.card_data
        licence = (card.get("license_name") or card.get("license")) if card else None
        return Listing(
            repository, info.sha, bool(info.gated), licence, tuple(_file(entry) for entry in tree if _wanted(entry))
        )

    return patiently(repository, ask, on_wait)


def may_download(found: Listing, on_wait: OnWait) -> None:
    """Ask for the smallest file's description, because a gated repository shows its list to everybody.

    Raises WeightsError where the licence was not accepted, or the token is missing or wrong.
    """
    if found.files:
        smallest = min(found.files, key=lambda file: file.size)
        url = hf_hub_url(found.repository, smallest.path, revision=found.commit)
        patiently(found.repository, lambda: HfApi().get_hf_file_metadata(url=url, timeout=TIMEOUT_S), on_wait)


def _wanted(entry: object) -> bool:
    return isinstance(entry, RepoFile) and not any(fnmatch(entry.path.lower(), pattern) for pattern in IGNORED)


def _file(entry: object) -> File:
    assert isinstance(entry, RepoFile)  # noqa: S101 - by _wanted; tells the type checker
    return File(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)


def patiently(repository: str, ask: Callable[[], T], on_wait: OnWait, pause: Callable[[float], None] = time.sleep) -> T:
    """What `ask` returns; asked again while the hub is busy or out of reach, a bounded number of times."""
    for tried in range(1, ASKS + 1):
        with explained(repository):
            try:
                return ask()
            except (errors.HfHubHTTPError, httpx2.TransportError) as error:
                wait = worth_waiting(error, tried)
                if wait is None or tried == ASKS:
                    raise
                on_wait(f"{briefly(error)}; asking again in {wait:g} s")
        pause(wait)
    raise AssertionError("the loop returns or raises")


def worth_waiting(error: Exception, tried: int) -> float | None:
    """Seconds to wait before the next try, or None where waiting changes nothing."""
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 429:
            asked = _asked_to_wait(error)
            return asked if asked <= MAX_WAIT_S else None
        return 2.0 ** (tried - 1) if status >= 500 else None
    # Offline is a wish of the user's and not the network's state.
    return 2.0 ** (tried - 1) if isinstance(error, httpx2.TransportError) else None


def _asked_to_wait(error: errors.HfHubHTTPError) -> float:
    """Seconds. The hub says when its window ends in `RateLimit`; what stands before it may say `Retry-After`."""
    if limit := parse_ratelimit_headers(error.response.headers):
        return float(limit.reset_in_seconds)
    try:
        return max(0.0, float(error.response.headers.get("Retry-After", "10")))
    except ValueError:  # a date
        return 10.0


def briefly(error: Exception) -> str:
    """In a few words, for a line of progress."""
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answers {error.response.status_code}"
    return f"the connection failed ({type(error).__name__})"


@contextmanager
def explained(repository: str) -> Iterator[None]:
    """Every way in which the hub, the network or the disk says no becomes one WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except (errors.OfflineModeIsEnabled, OSError, ValueError, httpx2.HTTPError) as error:
        raise WeightsError(explain(repository, error)) from error


def explain(repository: str, error: BaseException) -> str:
    """One message: what happened, to which repository, and what to do next."""
    where = page(repository)
    match error:
        case errors.GatedRepoError() if get_token() is None:
            said = (
                f"is gated and no token was given: accept its licence on {where} with your account, make a read "
                "token, and give it as HF_TOKEN"
            )
        case errors.GatedRepoError():
            said = (
                "is gated, and the account that HF_TOKEN belongs to may not download it: accept its licence on "
                f"{where} with that account (a fine-grained token must also allow gated repositories)"
            )
        case errors.RepositoryNotFoundError():
            said = (
                f"is not known to the hub, or not shown to you; check {where}, and HF_TOKEN if it is private or gated"
            )
        case errors.OfflineModeIsEnabled():
            said = f"is not whole on this machine, and HF_HUB_OFFLINE forbids downloading it; see {where}"
        case errors.HfHubHTTPError():
            said = _refused(where, error)
        case OSError() if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            said = (
                f"does not fit: the disk of {constants.HF_HUB_CACHE} is full. Free some of it, or name another disk by "
                f"HF_HUB_CACHE; {AGAIN}. See {where}"
            )
        case PermissionError():
            said = (
                f"cannot be kept: {error.filename or constants.HF_HUB_CACHE} may not be written. Let this user write "
                f"it, or name another folder by HF_HUB_CACHE. See {where}"
            )
        case httpx2.TransportError() | TimeoutError():
            said = (
                f"cannot be fetched: the hub is out of reach ({type(error).__name__}). Check the network and {where}; "
                f"{AGAIN}"
            )
        case _:
            words = str(error).strip().splitlines()
            said = f"could not be fetched: {words[0] if words else type(error).__name__}; see {where}"
    return f"{repository} {said}"


def _refused(where: str, error: errors.HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in {401, 403}:
        return f"was refused: the hub does not take HF_TOKEN ({status}). Make a new read token, and check {where}"
    if status == 429:
        return (
            f"cannot be fetched now: the hub asks for fewer requests (429). Wait {_asked_to_wait(error):g} s; {AGAIN}. "
            f"A token (HF_TOKEN) raises the limit; see {where}"
        )
    return f"cannot be fetched now: the hub answers {status}. Try later; {AGAIN}. See {where}"


def offline() -> bool:
    """Whether the user forbade the network (`HF_HUB_OFFLINE`)."""
    return constants.is_offline_mode()
