"""The HTTP around an emulated provider: one thread a request, on loopback, and everything that can go wrong.

A fault waits for its operation (as the provider's API names it) and happens so many times. `/emulator/…` is no
part of any provider: there a person sees the bill and takes machines back.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Protocol
from urllib.parse import parse_qsl, urlsplit

from infra.emulate.account import Account
from infra.errors import InfraError


class EmulatorError(InfraError):
    """An emulated provider cannot be served."""


class Trouble(StrEnum):
    LIMITED = "limited"  # 429 with retryAfter, and nothing done
    BROKEN = "broken"  # 500, and nothing done
    BROKEN_AFTER = "broken_after"  # done, and 502
    LOST_REQUEST = "lost_request"  # the connection ends, and nothing done
    LOST_ANSWER = "lost_answer"  # done, and the connection ends
    NO_STOCK = "no_stock"  # phantom stock: the order is refused
    SLOW = "slow"  # done, and answered after `seconds`


@dataclass(slots=True)
class Fault:
    """`operation` may be empty: any. `seconds` is Retry-After of LIMITED, the delay of SLOW."""

    trouble: Trouble
    operation: str = ""
    times: int = 1
    seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: object


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    data: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"


class Api(Protocol):
    """One provider."""

    @property
    def account(self) -> Account: ...

    def operation(self, request: Request, /) -> str:
        """The provider's name for what is asked; empty for a path that it does not have."""
        ...

    def answer(self, request: Request, operation: str, /) -> Answer: ...

    def failure(self, status: int, detail: str, retry_after_s: float | None = None, /) -> Answer:
        """An error in the provider's words."""
        ...

    def no_stock(self) -> Answer: ...


@dataclass(slots=True)
class Emulator:
    """A served provider. `faults` is what goes wrong next; `asked` is what it was asked, by operation."""

    api: Api
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    log: list[tuple[Request, str, Answer]] = field(default_factory=list)

    @property
    def account(self) -> Account:
        return self.api.account

    def serve(self, request: Request) -> Answer | None:
        """The answer; None for a connection that just ends."""
        if request.path.startswith("/emulator"):
            return self._for_people(request)
        operation = self.api.operation(request)
        self.asked.append(operation)
        answer = self._answered(request, operation)
        if answer is not None:
            self.log.append((request, operation, answer))
        return answer

    def _answered(self, request: Request, operation: str) -> Answer | None:
        fault = self._due(operation)
        trouble, seconds = (fault.trouble, fault.seconds) if fault else (None, 0.0)
        instead: Mapping[Trouble | None, Callable[[], Answer | None]] = {
            Trouble.LIMITED: lambda: self.api.failure(429, "too many requests", seconds),
            Trouble.BROKEN: lambda: self.api.failure(500, "something went wrong"),
            Trouble.NO_STOCK: self.api.no_stock,
            Trouble.LOST_REQUEST: lambda: None,
        }
        if trouble in instead:
            return instead[trouble]()
        answer = self.api.answer(request, operation)
        if trouble is Trouble.SLOW:
            time.sleep(seconds)
        if trouble is Trouble.BROKEN_AFTER:
            return self.api.failure(502, "bad gateway")
        return None if trouble is Trouble.LOST_ANSWER else answer

    def _due(self, operation: str) -> Fault | None:
        with self.account.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.operation in ("", operation):
                    fault.times -= 1
                    return fault
        return None

    def _for_people(self, request: Request) -> Answer:
        account = self.account
        if request.path == "/emulator/take-back" and request.method == "POST":
            return Answer(200, {"taken_back": account.take_back(request.query.get("name", ""))})
        lines = {name: {"seconds": round(s, 1), "dollars": round(usd, 4)} for name, (s, usd) in account.bill().items()}
        return Answer(200, {"alive": sorted(rental.name for rental in account.alive()), "bill": lines})


class _Handler(BaseHTTPRequestHandler):
    emulator: ClassVar[Emulator]
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(content) if content else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.emulator.serve(Request(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body))
        if answer is None:
            self.close_connection = True
            return
        with suppress(ConnectionError):  # whoever asked has gone
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        data = b"" if answer.data is None else json.dumps(answer.data).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": answer.media_type, **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815 - named by the library

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's own name
        """In `Emulator.log`, not on standard error."""


@contextmanager
def serving(api: Api, port: int = 0) -> Iterator[Emulator]:
    """Serve on loopback until the block ends; what is still rented then ends, too.

    Raises EmulatorError if the port is another's.
    """
    emulator = Emulator(api)
    handler = type("Handler", (_Handler,), {"emulator": emulator})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise EmulatorError(f"port {port} of this computer cannot be listened on: {error.strerror}") from None
    server.daemon_threads = True
    emulator.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield emulator
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        api.account.close()
