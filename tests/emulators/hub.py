"""The weights hub at its wire: repositories over HTTP, as its own client asks for them, and every way it says no.

It answers what `huggingface_hub` asks: a model's description and tree, HEAD and GET of files with ranges,
large files by a redirect to another host as from its CDN. Status codes, `X-Error-Code` and messages are the
hub's. A repository lives in a folder; what goes wrong with it is set on it (`Faults`) and counted.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOOPBACK = "127.0.0.1"
LARGE = 16_384
"""Bytes from which a file is kept as LFS, known by its SHA-256 and served by the CDN."""
TOKEN_ACCEPTED = "hf_accepted0123456789"
"""Belongs to an account that accepted every licence."""
TOKEN_OTHER = "hf_other0123456789"
"""Belongs to an account that accepted none."""


@dataclass
class Faults:
    """What goes wrong next. Counts go down as they happen."""

    cuts: int = 0
    """This many downloads of large files end without a word ..."""
    cut_at: float = 0.5
    """... after this part of what was asked for."""
    damaged: int = 0
    """This many downloads of large files have a byte wrong."""
    busy: deque[str] = field(default_factory=deque)
    """`Retry-After` of each 429 to come."""
    limits: deque[int] = field(default_factory=deque)
    """Seconds that `RateLimit` names in each 429 to come, beside another's `Retry-After` of an hour."""
    down: int = 0
    """This many answers are 503."""
    ignores_ranges: bool = False
    hold: threading.Event | None = None
    """A download of a large file waits in its middle until this is set."""


@dataclass
class Repository:
    """One repository, and who asked for what of it: (method, path, range)."""

    folder: Path
    gated: bool = True
    licence: str = "ideogram-non-commercial-model-agreement"
    faults: Faults = field(default_factory=Faults)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def files(self) -> dict[str, Path]:
        return {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}

    @property
    def commit(self) -> str:
        seen = hashlib.sha1(usedforsecurity=False)
        for name, path in self.files().items():
            seen.update(name.encode() + path.read_bytes())
        return seen.hexdigest()

    def sent(self) -> list[tuple[str, str]]:
        """Downloads of large files: (path, range)."""
        return [(path, ranged) for method, path, ranged in self.asked if method == "CDN"]


@dataclass
class Hub:
    """`url` is HF_ENDPOINT."""

    url: str
    repositories: dict[str, Repository]


@contextmanager
def hub(repositories: dict[str, Repository], address: str = LOOPBACK) -> Iterator[Hub]:
    """Serving on two free ports of `address` while the block runs: the hub, and its CDN, on loopback under another
    host name."""
    name = "localhost" if address == LOOPBACK else address
    with (
        _listening(_Cdn, repositories, address) as port,
        _listening(_Hub, repositories, address, f"{name}:{port}") as hubs,
    ):
        yield Hub(f"http://{address}:{hubs}", repositories)


@contextmanager
def _listening(kind: type[_Handler], repositories: dict[str, Repository], address: str, cdn: str = "") -> Iterator[int]:
    handler = type("Bound", (kind,), {"repositories": repositories, "cdn": cdn})
    with _Server((address, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield int(server.server_port)
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go in the middle are what some tests are about; anything else is worth its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type] # socketserver's own types


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Repository]
    cdn: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.answer(status, body, X_Error_Code=code, X_Error_Message=message, **headers)

    def found(self, name: str) -> Repository | None:
        repository = self.repositories.get(name)
        if repository is None:
            self.refuse(401, "RepoNotFound", "Repository not found")
        return repository

    def troubled(self, faults: Faults) -> bool:
        if faults.busy:
            self.refuse(429, "", "Rate limited", Retry_After=faults.busy.popleft())
            return True
        if faults.limits:
            limit = f'"api";r=0;t={faults.limits.popleft()}'
            policy = '"fixed window";"api";q=500;w=300'
            self.refuse(429, "", "Rate limited", RateLimit=limit, RateLimit_Policy=policy, Retry_After="3600")
            return True
        if faults.down > 0:
            faults.down -= 1
            self.refuse(503, "", "Service unavailable")
            return True
        return False


class _Hub(_Handler):
    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in {TOKEN_ACCEPTED, TOKEN_OTHER}:
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return
        match path.strip("/").split("/"):
            case ["api", "models", owner, name]:
                self._describe(f"{owner}/{name}")
            case ["api", "models", owner, name, "revision", _]:
                self._describe(f"{owner}/{name}")
            case ["api", "models", owner, name, "tree", *_]:
                self._list(f"{owner}/{name}")
            case [owner, name, "resolve", _, *file]:
                self._resolve(f"{owner}/{name}", "/".join(file), token)
            case _:
                self.refuse(404, "", "Not found")

    do_HEAD = do_GET  # noqa: N815 - the name that the base class looks for

    def _describe(self, name: str) -> None:
        if (repository := self.found(name)) and not self.troubled(repository.faults):
            repository.asked.append((self.command, "description", ""))
            described = {
                "id": name,
                "sha": repository.commit,
                "gated": "manual" if repository.gated else False,
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in repository.files()],
                "cardData": {"license": "other", "license_name": repository.licence},
            }
            self.answer(200, json.dumps(described).encode(), Content_Type="application/json")

    def _list(self, name: str) -> None:
        if repository := self.found(name):
            entries = [_entry(path, file.read_bytes()) for path, file in repository.files().items()]
            self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")

    def _resolve(self, name: str, file: str, token: str) -> None:
        repository = self.found(name)
        if repository is None or self.troubled(repository.faults):
            return
        repository.asked.append((self.command, file, self.headers.get("Range", "")))
        message = f"Access to model {name} is restricted."
        if repository.gated and not token:
            self.refuse(401, "GatedRepo", f"{message} You must be authenticated to access it.")
        elif repository.gated and token != TOKEN_ACCEPTED:
            self.refuse(403, "GatedRepo", f"{message} You are not in the authorized list.")
        elif file not in repository.files():
            self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=repository.commit)
        else:
            self._give(repository, name, file)

    def _give(self, repository: Repository, name: str, file: str) -> None:
        data = repository.files()[file].read_bytes()
        if len(data) < LARGE:
            self.answer(200, data, ETag=f'"{git_id(data)}"', X_Repo_Commit=repository.commit)
            return
        self.answer(
            302,
            ETag='"of the redirect"',
            X_Repo_Commit=repository.commit,
            X_Linked_Etag=f'"{hashlib.sha256(data).hexdigest()}"',
            X_Linked_Size=str(len(data)),
            Location=f"http://{self.cdn}/{name}/{file}?signature=of-the-cdn",
        )


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
    if len(data) >= LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


class _Cdn(_Handler):
    """Knows nobody: its addresses are signed, and a token that is sent along would be a leak."""

    def do_GET(self) -> None:
        owner, name, *file = unquote(urlsplit(self.path).path).strip("/").split("/")
        repository, path = self.repositories[f"{owner}/{name}"], "/".join(file)
        if "Authorization" in self.headers:
            self.refuse(400, "", "The CDN was sent a token")
            return
        ranged, faults = self.headers.get("Range", ""), repository.faults
        repository.asked.append(("CDN", path, ranged))
        data = repository.files()[path].read_bytes()
        start = int(ranged.removeprefix("bytes=").partition("-")[0]) if ranged and not faults.ignores_ranges else 0
        rest = bytearray(data[start:])
        if faults.damaged > 0:
            faults.damaged -= 1
            rest[-1] ^= 1
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        half = int(len(rest) * (faults.cut_at if faults.cuts > 0 else 0.5))
        self.wfile.write(rest[:half])
        self.wfile.flush()
        if faults.hold and not faults.hold.wait(60):
            raise TimeoutError("the test never let this download go on")
        if faults.cuts > 0:
            faults.cuts -= 1
            self.close_connection = True
            return
        self.wfile.write(rest[half:])
