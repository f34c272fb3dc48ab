"""RunPod's queue as a serverless worker meets it: jobs taken by a long poll, answers and progress posted back.

The addresses are handed to a worker by its environment, as RunPod does; the worker's own package does the rest.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.waiting import eventually

POLL_S = 20.0
"""How long a worker's question is held while there is nothing for it."""
Answer = dict[str, Any]


@dataclass
class RunPodQueue:
    """`answers` by job, `progress` by job in their order; `unhealthy` is what fitness checks reported."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    progress: dict[str, list[Answer]] = field(default_factory=dict)
    unhealthy: list[str] = field(default_factory=list)
    waiting: queue.SimpleQueue[dict[str, Any] | None] = field(default_factory=queue.SimpleQueue)
    stops: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)

    def add(self, job_id: str, given: object) -> None:
        self.waiting.put({"id": job_id, "input": given})

    def stop(self, job_id: str) -> None:
        """As when its caller cancels it."""
        self.stops.put(job_id)

    def answer(self, job_id: str, within_s: float = 60) -> Answer:
        return eventually(lambda: self.answers.get(job_id), within_s, f"{job_id} is answered")

    @property
    def environment(self) -> dict[str, str]:
        """What RunPod sets for a worker."""
        base = f"http://127.0.0.1:{self.port}/v2/endpoint"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=emulated",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=emulated",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "600000",
            "RUNPOD_ENDPOINT_ID": "endpoint",
            "RUNPOD_POD_ID": "pod",
            "RUNPOD_AI_API_KEY": "rpa_emulated",
            # Its own look at the machine asks for a network and 10 % of the disk.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }


@contextmanager
def runpod_queue() -> Iterator[RunPodQueue]:
    """Listening on a free loopback port while the block runs."""
    state = RunPodQueue()
    handler = type("Bound", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        state.port = int(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: RunPodQueue
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        match path.path.split("/")[3]:
            case "job-take" | "job-take-batch":
                self._hold(self.state.waiting, lambda job: [job] if "batch" in path.path else job)
            case "job-stop":
                self._hold(self.state.stops, lambda job_id: {"jobsToStop": [job_id]})
            case "ping":
                if "unhealthy" in path.query:
                    self.state.unhealthy.append(path.query)
                self._say(200, {})
            case _:
                self._say(404, {})

    def do_POST(self) -> None:
        path = urlsplit(self.path).path.split("/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("status") == "IN_PROGRESS":
            self.state.progress.setdefault(path[5], []).append(body["output"])
        else:
            self.state.answers[path[5]] = body
        self._say(200, {})

    def _hold(self, source: queue.SimpleQueue[Any], shape: Any) -> None:  # noqa: ANN401
        try:
            found = source.get(timeout=POLL_S)
        except queue.Empty:
            self._say(204)
            return
        try:
            self._say(200, shape(found))
        except OSError:
            source.put(found)  # the worker went away meanwhile: another one gets it

    def _say(self, status: int, body: object = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(data)
