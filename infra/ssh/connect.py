"""Bringing a connection about: waiting for a machine that boots, its host key, our own key, and how it becomes root."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import time
from functools import partial
from pathlib import Path

import paramiko

from infra.hosts import Progress
from infra.ssh.connection import Connection, Log
from infra.ssh.errors import HostKeyChangedError, LoginRefusedError, SshError, SudoRefusedError, UnreachableError
from infra.ssh.pins import Pins
from infra.ssh.target import Patience, Target
from infra.ssh.threads import in_thread

ANSWER_S = 15.0
"""For TCP, for sshd's first words, for the exchange of keys, and for the login: each."""
PAUSE_S = 1.0
LONGEST_PAUSE_S = 5.0
ALIVE_S = 15

# It logs each failed connection with its traceback, which is told by our own errors.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class _NotYetError(Exception):
    """Nobody answers yet, or sshd is only starting: worth another try."""


async def connect(
    target: Target, pins: Pins, progress: Progress, patience: Patience, log: Log = lambda _: None
) -> Connection:
    """A connection that can run commands as root.

    Raises UnreachableError, LoginRefusedError, HostKeyChangedError, SudoRefusedError, or SshError for a key of
    ours that cannot be used.
    """
    connection = await in_thread(_connect, target, pins, progress, patience, log)
    connection.another = partial(connect, target, pins, progress, Patience(reach_s=0.0), log)
    return connection


def _connect(target: Target, pins: Pins, progress: Progress, patience: Patience, log: Log) -> Connection:
    key = _private_key(target.key)
    transport = _reach(target, pins, progress, patience.reach_s)
    login_until = time.monotonic() + patience.login_s
    while not _log_in(transport, target, key):
        transport.close()
        if time.monotonic() >= login_until:
            public = f"{key.get_name()} {key.get_base64()}"
            raise LoginRefusedError(
                f"{target.id}: {target.address} does not let {target.user} in with {target.key}. Put this line into "
                f"~{target.user}/.ssh/authorized_keys there, or name another `user` or `key`:\n    {public} letterpress"
            )
        progress(f"{target.address} answers, and does not know our key yet")
        time.sleep(PAUSE_S)
        transport = _reach(target, pins, progress, ANSWER_S)
    connection = Connection(target, transport, log)
    try:
        _become_root(connection, target)
    except BaseException:  # whatever it is: nobody else would close the connection, and it is raised again
        transport.close()
        raise
    return connection


def _reach(target: Target, pins: Pins, progress: Progress, within_s: float) -> paramiko.Transport:
    """Connected to the right machine, however often that has to be tried."""
    begun = time.monotonic()
    reach_until, pause = begun + within_s, PAUSE_S
    while True:
        try:
            return _transport(target, pins)
        except _NotYetError as error:
            left = reach_until - time.monotonic()
            if left <= 0:
                raise UnreachableError(
                    f"{target.id}: {target.address} port {target.port} does not answer ({error}), tried for "
                    f"{time.monotonic() - begun:.0f} s. Is the machine up, is the address right, does its firewall let "
                    f"this computer in? Try: ssh -p {target.port} {target.user}@{target.address}"
                ) from None
            progress(f"waiting for {target.address} port {target.port}: {error} ({time.monotonic() - begun:.0f} s)")
            time.sleep(min(pause, left))
            pause = min(LONGEST_PAUSE_S, pause * 1.5)


def _private_key(path: Path) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError:
        raise SshError(f"{path}: there is no such SSH key; `key` in the stack file names it") from None
    except paramiko.PasswordRequiredException:
        raise SshError(
            f"{path} is locked with a passphrase, which nobody can type here. Leave `key` out of the stack file: then "
            "the stack's own key is used, and the deploy says which line to put into authorized_keys"
        ) from None
    except (paramiko.SSHException, OSError, ValueError) as error:
        raise SshError(f"{path} cannot be used as an SSH key: {error}") from None


def _transport(target: Target, pins: Pins) -> paramiko.Transport:
    """Connected, and talking to the machine that was pinned, or pinned now."""
    try:
        wire = socket.create_connection((target.address, target.port), ANSWER_S)
    except socket.gaierror as error:
        raise UnreachableError(f"{target.id}: {target.address} is no address ({error.strerror})") from None
    except OSError as error:
        raise _NotYetError(_in_words(error)) from None
    # A command is a few small messages: without this each one waits for the other side's delayed ACK, 40 ms.
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(wire)
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = ANSWER_S
    pinned = pins.get(target.id)
    if pinned:
        _ask_for(transport, pinned.partition(" ")[0])
    try:
        transport.start_client(timeout=ANSWER_S)
        offered = transport.get_remote_server_key()
    except paramiko.ssh_exception.IncompatiblePeer as error:
        transport.close()
        if pinned:
            raise _changed(target, pins, "it has no key of that kind") from None
        raise SshError(f"{target.id}: sshd at {target.address} speaks nothing that we speak: {error}") from None
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        raise _NotYetError(f"sshd is not ready: {str(error) or type(error).__name__}") from None
    shown = f"{offered.get_name()} {offered.get_base64()}"
    if shown != (pinned or pins.pin(target.id, shown)):
        transport.close()
        raise _changed(target, pins, f"it shows {offered.fingerprint}")
    transport.set_keepalive(ALIVE_S)
    return transport


def _ask_for(transport: paramiko.Transport, kind: str) -> None:
    """The kind of key that was pinned; an RSA key signs with more than one algorithm."""
    kinds = ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)
    options = transport.get_security_options()
    if known := tuple(name for name in options.key_types if name in kinds):
        options.key_types = known


def _changed(target: Target, pins: Pins, what: str) -> HostKeyChangedError:
    return HostKeyChangedError(
        f"{target.id}: the machine that answers at {target.address} port {target.port} is not the one that was met "
        f"there first: its host key is another ({what}). Nothing was sent. If you made that machine anew, say so: "
        f"`letterpress forget-host-key {target.id} --stack {pins.file.parent.name}`, and deploy again. If you did not, "
        "somebody else has its address, or is in between"
    )


def _log_in(transport: paramiko.Transport, target: Target, key: paramiko.PKey) -> bool:
    try:
        transport.auth_publickey(target.user, key)
    except (paramiko.SSHException, EOFError):
        return False
    return True


def _become_root(connection: Connection, target: Target) -> None:
    """How commands become root: not at all, by sudo, or by sudo with a password on its standard input."""
    user, *taken = connection.ask('id -u; echo "$SSH_CONNECTION"').split()
    if len(taken) == 4:
        connection.server_port = int(taken[3])
    if user == "0":
        return
    if connection.try_as_user("sudo -k -n true").status == 0:
        connection.root = ("sudo", "-n", "--")
        return
    if not connection.ask("command -v sudo || true").strip():
        raise SudoRefusedError(
            f"{target.shown}: {target.user} is not root there, and there is no sudo; name `user: root`"
        )
    if not target.password:
        raise SudoRefusedError(
            f"{target.shown}: sudo asks {target.user} for a password. Give it by reference in the stack file, "
            "`sudo_password: ${NAME}`, or let that user run sudo without one"
        )
    # -k: asked each time, so that exactly one line of what we send is the password's.
    asking = ("sudo", "-k", "-S", "-p", "", "--")
    preamble = f"{target.password}\n".encode()
    if connection.try_as_user(shlex.join((*asking, "true")), preamble).status != 0:
        raise SudoRefusedError(
            f"{target.shown}: sudo did not take the password of {target.user}: see `sudo_password` in the stack file, "
            f"and whether {target.user} may use sudo there at all"
        )
    connection.root, connection.preamble = asking, preamble


def _in_words(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    return os.strerror(error.errno).lower() if error.errno else str(error)
