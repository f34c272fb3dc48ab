"""`make admin`: see that the admin app answers, and open a way to it where the router is on a machine of its own."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from infra.deployment import Deployment
from infra.errors import InfraError
from infra.ssh.openssh import forward_argv
from infra.view.console import say
from router.client import RouterClientError

ANSWER_S = 20.0
OPEN_S = 20.0
LOOPBACK = "127.0.0.1"


class AdminAwayError(InfraError):
    """The admin app does not answer, or no way to it can be opened."""


def open_admin(stack: str) -> None:
    """Print where it is. On a machine of its own: hold a forward open to it until somebody interrupts."""
    deployment = Deployment.remembered(stack)
    try:
        asyncio.run(_answers(deployment))
    except (RouterClientError, TimeoutError) as error:
        raise AdminAwayError(f"the admin app does not answer: {error}. `make status`, then `make deploy`") from None
    if deployment.description.router.host is None:
        _show(deployment, deployment.endpoint.admin_url)
        return
    with _forward(deployment) as (url, ssh):
        _show(deployment, url)
        say("Open until Ctrl-C.")
        if ssh.wait() != 0:
            raise AdminAwayError("the connection to the router's host has ended; run `make admin` again")


def _show(deployment: Deployment, url: str) -> None:
    say(f"Admin console   {url}")
    say(f"Metrics         {url}/metrics")
    say(f"Admin key       {deployment.endpoint.admin_key_file} (only changes want it)")


async def _answers(deployment: Deployment) -> None:
    async with asyncio.timeout(ANSWER_S), deployment.admin() as client:
        await client.health()


@contextmanager
def _forward(deployment: Deployment) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """OpenSSH's, with the same pins and the same key; its port here is the admin app's own, if that is free."""
    far = deployment.description.router.admin.port
    near = _free(far)
    argv = forward_argv(deployment.place().target, deployment.paths.known_hosts, near, far)
    signal.signal(signal.SIGTERM, _leave)
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as ssh:
        try:
            until = time.monotonic() + OPEN_S
            while not _open(near):
                if ssh.poll() is not None or time.monotonic() > until:
                    raise AdminAwayError(f"no way to the router's host can be opened: ssh ended with {ssh.poll()}")
                time.sleep(0.1)
            yield f"http://{LOOPBACK}:{near}", ssh
        except KeyboardInterrupt:
            pass
        finally:
            ssh.terminate()


def _leave(_signal: int, _frame: object) -> NoReturn:
    sys.exit(0)


def _free(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            taken: int = probe.getsockname()[1]
            return taken
    raise AdminAwayError("no port is free on this computer's loopback")


def _open(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), 1).close()
    except OSError:
        return False
    return True
