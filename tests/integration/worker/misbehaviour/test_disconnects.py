"""Readers that come, hang up, and come back."""

from __future__ import annotations

import random
import socket
from concurrent.futures import ThreadPoolExecutor

from tests.integration.worker.misbehaviour.rig import asking_for, ready
from tests.integration.worker.process import TOKEN, Running, Start, made
from worker.contract import Finished, WorkerState

READERS = 60


def hang_up(worker: Running, body: str, after: int) -> None:
    """PUT, read up to `after` bytes of the answer, and leave without a word (a reset, not an end)."""
    request = (
        f"PUT /generations/a.1 HTTP/1.1\r\nHost: w\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    with socket.create_connection(("127.0.0.1", worker.http.base_url.port or 0)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        # Some leave before they have said what they want.
        connection.sendall(request[: len(request) if after else random.randrange(len(request))])
        if after:
            connection.recv(after)


def test_they_neither_end_nor_repeat_the_image(start: Start) -> None:
    worker = ready(start)
    wanted = asking_for("a fox", steps=60)
    with ThreadPoolExecutor(16) as pool:
        leaving = [
            pool.submit(hang_up, worker, wanted.model_dump_json(), random.choice([0, 1, 300])) for _ in range(READERS)
        ]
        for one in leaving:
            one.result()
    end = made(worker, "a.1", wanted)
    assert isinstance(end, Finished)
    assert len(worker.http.get("/generations/a.1/image").content) == end.bytes
    status = worker.status()
    assert status
    assert (status.state, status.running, status.accepted) == (WorkerState.READY, None, None)
    assert worker.log.read_text().count("generation ended") == 1
    assert '"level": "error"' not in worker.log.read_text()
