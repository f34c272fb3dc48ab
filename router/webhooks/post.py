"""One POST to a receiver: checked address, right name, bounded time, nothing followed, next to nothing read."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpcore
import httpx

from router.webhooks.addresses import Address, Network, allowed, listed
from router.webhooks.schedule import Answered, Unanswered

TIMEOUT_S = 15.0
"""From the first look at the name to the receiver's status, all together."""
RESOLVERS = 16
"""Threads that ask for names: their own, so that a name server that is slow holds up nothing else."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class _RefusedError(Exception):
    """This address is not one that a webhook may connect to."""


class _Checked(httpcore.AsyncNetworkBackend):
    """Resolves, judges, and connects to the very address that was judged. TLS and Host keep the name."""

    def __init__(self, resolve: Resolve, permitted: Callable[[Address], bool]) -> None:
        self._resolve = resolve
        self._permitted = permitted
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await self._resolve(host, port)
        good = [address for address in found if self._permitted(address)]
        if not good:
            named = ", ".join(str(address) for address in found[:4]) or "nothing"
            raise _RefusedError(
                f"{host} is at {named}, where webhooks do not go: only to public addresses, and by https "
                "(the operator can name exceptions in LETTERPRESS_ROUTER_WEBHOOK_ALLOW)"
            )
        for address in good[:-1]:
            try:
                return await self._plain.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue  # it may answer at another of its addresses
        return await self._plain.connect_tcp(str(good[-1]), port, timeout, local_address, socket_options)


class Poster:
    """To be closed by whoever made it. `exceptions` are addresses beside the public ones; only there may a URL be
    plain http. `trust` is whose certificates are believed (default: the usual ones)."""

    def __init__(
        self,
        exceptions: Sequence[Network] = (),
        *,
        trust: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
        resolve: Resolve | None = None,
    ) -> None:
        self._exceptions = exceptions
        self._trust = trust or httpx.create_ssl_context()
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(RESOLVERS, "webhook-names")
        self._resolve = resolve or self._ask_the_system

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answered | Unanswered:
        """Every way that this can end is a value."""
        target = httpx.URL(url)
        secure = target.scheme == "https"

        def permitted(address: Address) -> bool:
            return allowed(address, self._exceptions) if secure else listed(address, self._exceptions)

        try:
            async with (
                asyncio.timeout(self._timeout_s),
                # A connection of its own: the next one is judged anew.
                httpcore.AsyncConnectionPool(
                    ssl_context=self._trust,
                    network_backend=_Checked(self._resolve, permitted),
                    max_keepalive_connections=0,
                ) as pool,
                pool.stream("POST", _bytes(target), headers=_named(target, headers, body), content=body) as answer,
            ):
                found = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
                retry_after = found.get(b"retry-after", "")
                return Answered(
                    answer.status,
                    int(retry_after) if retry_after.isdecimal() and len(retry_after) < 10 else None,
                    found.get(b"location"),
                )
        except TimeoutError:
            return Unanswered(f"no answer within {self._timeout_s:g} s")
        except _RefusedError as error:
            return Unanswered(str(error))
        except socket.gaierror as error:
            return Unanswered(f"the name {target.host} could not be resolved: {error.strerror}")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            return Unanswered(f"the connection failed: {str(error)[:300] or type(error).__name__}")

    async def _ask_the_system(self, host: str, port: int) -> Sequence[Address]:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        # An address with a scope (fe80::1%eth0) is judged, and connected to, without it.
        return tuple(dict.fromkeys(ipaddress.ip_address(str(at[0]).partition("%")[0]) for _, _, _, _, at in found))


def _bytes(target: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)


def _named(target: httpx.URL, headers: Mapping[str, str], body: bytes) -> list[tuple[bytes, bytes]]:
    own = {"Host": target.netloc.decode("ascii"), "Content-Length": str(len(body))}
    return [(name.encode(), value.encode()) for name, value in (own | dict(headers)).items()]
