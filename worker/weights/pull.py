"""Brings a repository onto this machine: after a yes to its licence, where it fits, once, whole, and its bytes checked.

The hub's own client begins every file anew after an interruption. Sixteen gigabytes deserve better, so the
bytes are fetched here (with that client's session, addresses and headers), into partial files that outlive
the process; when all of them have their digests, the client itself links them into a snapshot.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx2
from huggingface_hub import errors, get_session, hf_hub_url, hf_raise_for_status, snapshot_download
from huggingface_hub.utils._headers import build_hf_headers

from worker.weights import cache, hub, licences
from worker.weights.catalogue import DEFAULT, licence_of
from worker.weights.hub import File, Listing, WeightsError
from worker.weights.licences import Acceptance, Way

AT_ONCE = 4
"""Files that are fetched side by side; one connection of the hub's rarely fills a data centre's line."""
SPARE_BYTES = 256 * 2**20
"""Left free on the disk by a download: logs and compiled kernels need some."""
CHUNK = 2**20
TRIES = 5
"""Connections in a row that bring nothing of a file, before it is given up."""
PARTIAL = ".partial"


class Progress(Protocol):
    """Whoever watches a download."""

    def accepted(self, yes: Acceptance) -> None:
        """A yes to the licence was written down, now or earlier."""

    def begins(self, listing: Listing, there: int) -> None:
        """`there` of the listing's bytes need not be fetched any more."""

    def advanced(self, count: int) -> None:
        """This many bytes more (fewer, where some had to be thrown away). Called by several threads."""

    def waits(self, why: str) -> None:
        """Something stands still for a while."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """`fetched` bytes came over the network this time."""

    folder: Path
    listing: Listing
    fetched: int


def pull(
    repository: str,
    records: Path,
    progress: Progress,
    *,
    accept: Way | None = None,
    verify: bool = False,
    served: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> Pulled:
    """The snapshot of `repository` as the hub has it now, downloaded as far as it is not here.

    `records` is the folder in which a yes to its licence is looked up, and written down if it is given now, by the
    way `accept`. `verify` reads what is here already, too,
    and downloads what is damaged. `served`: only what a worker can load is worth downloading. Raises WeightsError.
    """
    if hub.offline():
        raise WeightsError(hub.explain(repository, errors.OfflineModeIsEnabled()))
    listing = hub.listing(repository, progress.waits)
    if served:
        _require_layout(listing)
    _require_yes(listing, records, accept, progress)
    if not listing.files:
        raise WeightsError(f"{repository} holds no weights; see {hub.page(repository)}")
    hub.may_download(listing, progress.waits)
    home = cache.storage(cache.caches()[0], repository)
    with hub.explained(repository), _alone(home, progress):
        blobs = home / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        if verify:
            _drop_damaged(blobs, listing, progress)
        wanted = {file.digest: file for file in listing.files if not _there(blobs, file)}
        begun = sum(_size(blobs / f"{digest}{PARTIAL}") for digest in wanted)
        needed = sum(file.size for file in wanted.values())
        _require_room(repository, home, needed - begun)
        progress.begins(listing, listing.bytes - needed + begun)
        _Download(listing, blobs, progress, pause).fetch(list(wanted.values()))
        # All the contents are there: this makes the links, the branch and the client's own index of files.
        folder = snapshot_download(repository, allow_patterns=[file.path for file in listing.files])
    return Pulled(Path(folder), listing, needed - begun)


def _require_layout(listing: Listing) -> None:
    """Said before gigabytes are fetched that no worker could load."""
    if not any(file.path == cache.INDEX for file in listing.files):
        raise WeightsError(
            f"{listing.repository} has no {cache.INDEX}, and a worker loads repositories in diffusers' layout only: "
            f"take {DEFAULT}, or another one that {hub.page(listing.repository)} names for diffusers"
        )


def _require_yes(listing: Listing, records: Path, accept: Way | None, progress: Progress) -> None:
    """A gated repository's licence has to be accepted here as well as on its page: whoever runs it says so."""
    if not listing.gated:
        return
    licence = licence_of(listing.repository, listing.licence)
    yes = licences.accepted(records, listing.repository)
    if yes is None and accept is not None:
        yes = licences.accept(records, listing.repository, licence.name, accept)
    if yes is None:
        raise WeightsError(
            f"{listing.repository} comes under the {licence.name}: {licence.meaning}. Read it on "
            f"{hub.page(listing.repository)}; if you accept it, say so: `letterpress weights pull "
            f"{listing.repository} --accept-license`, or `accept_license: true` in the stack file"
        )
    progress.accepted(yes)


def _require_room(repository: str, home: Path, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if needed > 0 and free < needed + SPARE_BYTES:
        raise WeightsError(
            f"{repository} needs {_gb(needed)} more on {home.parent} (and {_gb(SPARE_BYTES)} to spare), where "
            f"{_gb(free)} are free: the disk would be full. Free some of it, or name another disk by HF_HUB_CACHE; "
            f"its files are listed on {hub.page(repository)}"
        )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _drop_damaged(blobs: Path, listing: Listing, progress: Progress) -> None:
    for file in listing.files:
        contents = blobs / file.digest
        if contents.is_file() and not cache.sound(contents, file.digest):
            progress.waits(f"{file.path} is damaged; fetching it anew")
            contents.unlink()


def _there(blobs: Path, file: File) -> bool:
    return _size(blobs / file.digest) == file.size and (blobs / file.digest).exists()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _alone(home: Path, progress: Progress) -> Iterator[None]:
    """One download of a repository at a time on this machine; the second waits and then finds everything there."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".letterpress.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.waits("another process downloads the same repository; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _DamagedError(Exception):
    """What came has another digest than the hub said."""


class _Download:
    """Fetches files of one listing, side by side, each into `blobs/<digest>.partial` and then to its name."""

    def __init__(self, listing: Listing, blobs: Path, progress: Progress, pause: Callable[[float], None]) -> None:
        self._listing = listing
        self._blobs = blobs
        self._progress = progress
        self._pause = pause
        self._given_up = threading.Event()

    def fetch(self, files: list[File]) -> None:
        """The largest first, so that none of them is left alone at the end."""
        largest_first = sorted(files, key=lambda file: file.size, reverse=True)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download") as pool:
            outcomes = [pool.submit(self._one, file) for file in largest_first]
            try:
                for outcome in outcomes:
                    outcome.result()
            finally:
                self._given_up.set()
                pool.shutdown(cancel_futures=True)

    def _one(self, file: File) -> None:
        partial = self._blobs / f"{file.digest}{PARTIAL}"
        try:
            if self._trusted(file, partial):
                partial.replace(self._blobs / file.digest)
        except BaseException:
            self._given_up.set()  # the others need not go on
            raise

    def _trusted(self, file: File, partial: Path) -> bool:
        """As `_whole`; what arrives damaged is fetched anew, once."""
        try:
            return self._whole(file, partial)
        except _DamagedError:
            # Once, it may be an older partial file or a cache on the way; twice, it is what the hub has.
            self._progress.waits(f"{file.path} arrived damaged; fetching it anew")
        try:
            return self._whole(file, partial)
        except _DamagedError:
            raise WeightsError(
                f"{self._listing.repository} cannot be trusted as it comes: {file.path} arrived damaged twice (its "
                "digest is not the one that the hub names), and nothing of it is kept. Look for a proxy or a cache "
                f"on the way, and see {hub.page(self._listing.repository)}"
            ) from None

    def _whole(self, file: File, partial: Path) -> bool:
        """Fetch until it is whole, going on where it stopped; an error after TRIES that brought nothing.

        True: every byte is on the disk and has its digest. False: the download was given up meanwhile, and the
        partial file stays for the next one.
        """
        fruitless = 0
        hashed = cache.hasher(file.digest, file.size)
        with partial.open("ab+") as contents:
            have = self._known(contents.fileno(), file, hashed)
            while have < file.size and not self._given_up.is_set():
                before = have
                try:
                    for chunk in self._stream(file, have):
                        contents.write(chunk)
                        hashed.update(chunk)
                        have += len(chunk)
                        self._progress.advanced(len(chunk))
                except (errors.HfHubHTTPError, httpx2.TransportError) as error:
                    contents.flush()
                    fruitless = 0 if have > before else fruitless + 1
                    wait = hub.worth_waiting(error, fruitless + 1)
                    if wait is None or fruitless >= TRIES:
                        raise
                    self._progress.waits(f"{file.path}: {hub.briefly(error)}; going on in {wait:g} s")
                    self._pause(wait)
            if have < file.size:
                return False
            if have == file.size and hashed.hexdigest() == file.digest:
                contents.flush()
                os.fsync(contents.fileno())  # or a power cut leaves the final name on bytes that never came
                return True
        self._progress.advanced(-have)
        partial.unlink()
        raise _DamagedError

    def _known(self, descriptor: int, file: File, hashed: cache.Hash) -> int:
        """How much of the partial file is there, hashed; what is longer than the file begins anew."""
        have = os.fstat(descriptor).st_size
        if have > file.size:
            os.ftruncate(descriptor, 0)
            return 0
        offset = 0
        while chunk := os.pread(descriptor, CHUNK, offset):
            hashed.update(chunk)
            offset += len(chunk)
        return have

    def _stream(self, file: File, start: int) -> Iterator[bytes]:
        """The bytes of `file` from `start`; a server that ignores ranges has what we know dropped as it comes."""
        # Compressed text would make ranges count other bytes.
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = hf_hub_url(self._listing.repository, file.path, revision=self._listing.commit)
        with get_session().stream("GET", url, headers=headers, timeout=hub.TIMEOUT_S) as response:
            hf_raise_for_status(response)
            skip = 0 if response.status_code == httpx2.codes.PARTIAL_CONTENT else start
            for chunk in response.iter_bytes():  # as it comes: what came before a cut is kept
                if self._given_up.is_set():
                    return
                yield chunk[skip:]
                skip = max(0, skip - len(chunk))
