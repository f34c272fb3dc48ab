"""One connection: commands with their output, files, and questions to servers on the machine's loopback.

Secrets go over standard input alone, never into a command: everybody on a machine can read its process list.
"""

from __future__ import annotations

import http.client
import select
import shlex
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, cast

import paramiko

from infra.ssh.errors import CommandError, UnreachableError
from infra.ssh.target import Target
from infra.ssh.threads import in_thread

QUESTION_S = 30.0
"""For a command that only looks."""
GRACE_S = 15.0
"""How long after its own time-out a command may take to say that it ran into it."""
QUIET_S = 0.5
"""After its end: something that it left behind may hold its output open for ever."""
CHUNK = 256 * 1024
OUTPUT_MAX = 4 * 1024 * 1024
BEGINS = "letterpress-begins"
"""What a login shell's own files print (bash reads ~/.bashrc here, too) ends with this line."""
TIMED_OUT = 124
"""timeout(1)'s exit status."""

Log = Callable[[str], None]
"""Takes a line of what is done and said on a machine; the file that is kept of it."""
OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended, and what it said. `errors` is what it wrote to standard error."""

    status: int
    output: str
    errors: str

    @property
    def said(self) -> str:
        return f"{self.output}\n{self.errors}".strip()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server on a machine's loopback answered."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Connection:
    """To one machine; calls may run side by side. `root` goes before what is run as root, `preamble` into its stdin."""

    def __init__(self, target: Target, transport: paramiko.Transport, log: Log) -> None:
        self.target = target
        self.root: tuple[str, ...] = ()
        self.preamble = b""
        self.server_port = target.port
        """The port that sshd took this connection at, as the machine itself sees it: providers map ports."""
        self._transport = transport
        self._log = log
        self.another: Callable[[], Awaitable[Connection]] = self._no_other
        """A second connection to the same machine, made anew."""

    @property
    def alive(self) -> bool:
        return self._transport.is_active()

    @property
    def host_key(self) -> str:
        """`TYPE KEY`, as known_hosts and the tunnel service have it."""
        key = self._transport.get_remote_server_key()
        return f"{key.get_name()} {key.get_base64()}"

    def close(self) -> None:
        self._transport.close()

    async def _no_other(self) -> Connection:
        raise self._lost()

    async def run(
        self,
        script: str,
        doing: str,
        *,
        stdin: bytes | Path = b"",
        within_s: float = QUESTION_S,
        on_line: OnLine = lambda _: None,
        advice: str = "",
    ) -> str:
        """Run a shell script as root; what it printed. `doing` says in errors and the log what it is for.

        Raises CommandError with its last lines and `advice` if it ends otherwise than with 0 or not in time.
        """
        done = await self.attempt(script, doing, stdin=stdin, within_s=within_s, on_line=on_line)
        if done.status != 0:
            status = None if done.status == TIMED_OUT else done.status
            raise CommandError(self.target.shown, doing, status, done.said, advice)
        return done.output

    async def attempt(
        self,
        script: str,
        doing: str,
        *,
        stdin: bytes | Path = b"",
        within_s: float = QUESTION_S,
        on_line: OnLine = lambda _: None,
    ) -> Done:
        """As `run`, but how it ends is the caller's to judge."""

        def heard(line: str) -> None:
            self._log(line)
            on_line(line)

        return await in_thread(self._as_root, script, doing, stdin, within_s, heard)

    async def write(self, path: PurePath, content: bytes | Path, mode: int = 0o600, owner: str = "root:root") -> None:
        """Put a file in place, whole or not at all; its folders are made, for root alone."""
        draft = shlex.quote(f"{path}.new")
        script = (
            f"umask 077; mkdir -p {shlex.quote(str(path.parent))} && cat >{draft} && chown {owner} {draft} && "
            f"chmod {mode:o} {draft} && mv -f {draft} {shlex.quote(str(path))}"
        )
        size = (await in_thread(content.stat)).st_size if isinstance(content, Path) else len(content)
        within_s = QUESTION_S + size / 250_000  # 2 Mbit/s is the slowest that is waited for
        await self.run(
            script, f"writing {path}", stdin=content, within_s=within_s, advice="Is its disk full, or read-only? df -h"
        )

    async def read(self, path: PurePath) -> bytes | None:
        """A file's content; None if there is none. The log keeps that it was read, and not what: it may be a secret."""
        quoted = shlex.quote(str(path))
        script = f"test -e {quoted} || exit 44; cat {quoted}"
        done = await in_thread(self._as_root, script, f"reading {path}", b"", QUESTION_S, _unkept)
        if done.status == 44:
            return None
        if done.status != 0:
            raise CommandError(self.target.shown, f"reading {path}", done.status, done.errors.strip())
        return done.output.encode(errors="surrogateescape")

    async def get(self, port: int, path: str, within_s: float = 5.0) -> tuple[int, bytes] | None:
        """GET from a server on the machine's loopback: status and body; None if nobody answers as HTTP."""
        answer = await self.exchange(port, "GET", path, {}, b"", within_s)
        return (answer.status, answer.body) if answer else None

    async def exchange(
        self, port: int, method: str, path: str, headers: Mapping[str, str], body: bytes, within_s: float
    ) -> Answer | None:
        """One request to a server on the machine's loopback; None if nobody answers as HTTP."""
        return await in_thread(self._exchange, port, method, path, headers, body, within_s)

    def _exchange(
        self, port: int, method: str, path: str, headers: Mapping[str, str], body: bytes, within_s: float
    ) -> Answer | None:
        try:
            channel = self._transport.open_channel(
                "direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0), timeout=within_s
            )
        except paramiko.ChannelException:
            return None
        except (paramiko.SSHException, EOFError, OSError):
            if not self.alive:
                raise self._lost() from None
            return None
        channel.settimeout(within_s)
        asking = http.client.HTTPConnection("127.0.0.1", port, timeout=within_s)
        asking.sock = channel
        try:
            asking.request(method, path, body or None, dict(headers))
            # Not by `getresponse`: of a server that closes, it closes the channel before the body is read. A socket's
            # file outlives that, a channel's does not.
            answer = http.client.HTTPResponse(cast("socket.socket", channel), method=method)
            answer.begin()
            return Answer(answer.status, tuple(answer.getheaders()), answer.read())
        except (http.client.HTTPException, OSError, EOFError):
            return None
        finally:
            channel.close()

    def ask(self, command: str) -> str:
        """Run as the user, in this thread."""
        return self.try_as_user(command).output

    def try_as_user(self, command: str, stdin: bytes = b"") -> Done:
        return self._execute(command, [stdin], QUESTION_S, lambda _: None)

    def _as_root(self, script: str, doing: str, stdin: bytes | Path, within_s: float, on_line: OnLine) -> Done:
        limit = ("timeout", "-k", "5", f"{within_s:.0f}")
        command = shlex.join((*self.root, *limit, "sh", "-c", script))
        self._log(f"# {doing}")
        done = self._execute(command, _chunks(self.preamble, stdin), within_s + GRACE_S, on_line)
        if done.status != 0:
            self._log(f"# ended with {done.status}")
        return done

    def _execute(self, command: str, stdin: Iterable[bytes], within_s: float, on_line: OnLine) -> Done:
        deadline = time.monotonic() + within_s
        command = f"echo {BEGINS}; {command}"
        try:
            channel = self._transport.open_session(timeout=QUESTION_S)
            channel.settimeout(within_s)
            channel.exec_command(command)
            try:
                for chunk in stdin:
                    channel.sendall(chunk)
                channel.shutdown_write()
            except OSError:
                pass  # it ended before it had read all: its status says why
            with channel:
                return _hear(channel, deadline, on_line)
        except (paramiko.SSHException, EOFError, OSError):
            raise self._lost() from None

    def _lost(self) -> UnreachableError:
        return UnreachableError(
            f"{self.target.id}: the connection to {self.target.address} was lost. Was the machine restarted? "
            "Deploy again: it goes on where it stopped"
        )


class _Lines:
    """Cuts what comes into lines for a listener, and keeps the last of it. Nothing counts before `begins`."""

    def __init__(self, on_line: OnLine, begins: bytes = b"") -> None:
        self._on_line = on_line
        self._begins = begins
        self._before = b""
        self._kept = bytearray()
        self._rest = b""

    def take(self, data: bytes) -> None:
        if self._begins:
            self._before += data
            _, found, data = self._before.partition(self._begins)
            if not found:
                return
            self._begins = self._before = b""
        self._kept += data
        del self._kept[:-OUTPUT_MAX]
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line.strip():
                self._on_line(line.decode(errors="replace"))

    def end(self) -> str:
        if self._begins:  # no shell ran it: what was said instead is all that there is
            self._begins, before = b"", self._before
            self.take(before)
        if self._rest.strip():
            self._on_line(self._rest.decode(errors="replace"))
        return self._kept.decode(errors="surrogateescape")


def _hear(channel: paramiko.Channel, deadline: float, on_line: OnLine) -> Done:
    """Both outputs, until the command has ended and they have, or time is up."""
    out, err = _Lines(on_line, BEGINS.encode() + b"\n"), _Lines(on_line)
    ready = select.poll()
    ready.register(channel.fileno(), select.POLLIN)
    ended_at: float | None = None
    while True:
        ready.poll(200)
        heard = False
        while channel.recv_ready():
            out.take(channel.recv(CHUNK))
            heard = True
        while channel.recv_stderr_ready():
            err.take(channel.recv_stderr(CHUNK))
            heard = True
        now = time.monotonic()
        if heard:
            continue
        if channel.exit_status_ready():
            ended_at = ended_at or now
            if channel.eof_received or channel.closed or now - ended_at > QUIET_S:
                status = channel.recv_exit_status()
                return Done(status, out.end(), err.end())
        elif channel.closed or (channel.eof_received and not channel.get_transport().is_active()):
            raise EOFError
        if now > deadline:
            return Done(TIMED_OUT, out.end(), err.end())
        if channel.eof_received:
            time.sleep(0.01)  # the pipe stays readable: what is awaited is the exit status


def _unkept(_: str) -> None:
    """For output that goes into no log."""


def _chunks(preamble: bytes, stdin: bytes | Path) -> Iterator[bytes]:
    if preamble:
        yield preamble
    if isinstance(stdin, Path):
        with stdin.open("rb") as file:
            yield from _read(file)
    elif stdin:
        yield stdin


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk
