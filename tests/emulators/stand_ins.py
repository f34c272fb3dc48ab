"""Programs that stand where a worker and a router stand, for tests of what stands them up.

Both are real processes behind real units and speak the real contracts' health and registration; they make
no images. `python stand_ins.py worker [loading seconds] [ready|broken|dies]` and `python stand_ins.py router`.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
import time
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from router.contract import Health, WorkerHealth, WorkerRegistration, WorkerView, fingerprint
from worker.contract import WorkerState, WorkerStatus

STARTED = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: HTTPStatus, body: str = "") -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        return "-"  # a unix socket's peer has none


class Worker(Handler):
    loading_s = 0.0
    then = "ready"

    def do_GET(self) -> None:
        loading = time.monotonic() - STARTED < self.loading_s
        state = WorkerState.LOADING if loading else WorkerState(self.then)
        status = WorkerStatus(
            state=state,
            reason="" if state is WorkerState.READY else f"{state}: reading weights",
            version="0",
            model=os.environ["LETTERPRESS_WORKER_MODEL"],
            engine="none",
            device=os.environ["LETTERPRESS_WORKER_DEVICE"],
        )
        self.answer(
            HTTPStatus.OK if state is WorkerState.READY else HTTPStatus.SERVICE_UNAVAILABLE, status.model_dump_json()
        )


class PublicApp(Handler):
    def do_GET(self) -> None:
        self.answer(HTTPStatus.OK, Health(status="ok", version="0", ready_pools=[]).model_dump_json())


class AdminApp(Handler):
    """Registered workers, in a file that outlives it."""

    store = Path()
    key = ""
    changing = threading.Lock()

    def do_GET(self) -> None:
        self.show()

    def do_POST(self) -> None:
        self.show()

    def do_PUT(self) -> None:
        if self.headers["Authorization"] != f"Bearer {self.key}":
            return self.answer(HTTPStatus.UNAUTHORIZED)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        registration = WorkerRegistration.model_validate_json(body)
        with self.changing:
            self.store.write_text(json.dumps(self.read() | {self.worker: registration.model_dump_json()}))
        return self.show()

    def do_DELETE(self) -> None:
        with self.changing:
            left = {name: registration for name, registration in self.read().items() if name != self.worker}
            self.store.write_text(json.dumps(left))
        self.answer(HTTPStatus.NO_CONTENT)

    @property
    def worker(self) -> str:
        return self.path.split("/")[2]

    def read(self) -> dict[str, str]:
        return dict(json.loads(self.store.read_text())) if self.store.exists() else {}

    def show(self) -> None:
        with self.changing:
            found = self.read().get(self.worker)
        if found is None:
            return self.answer(HTTPStatus.NOT_FOUND)
        worker = WorkerRegistration.model_validate_json(found)
        view = WorkerView(
            name=self.worker,
            url=worker.url,
            pool=worker.pool,
            token_fingerprint=fingerprint(worker.token),
            health=WorkerHealth.READY,
            since=datetime.now(UTC),
            draining=False,
            running=0,
            finished=0,
        )
        return self.answer(HTTPStatus.OK, view.model_dump_json())


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def run_worker(loading_s: float, then: str) -> None:
    Worker.loading_s = loading_s
    if then == "dies":
        time.sleep(loading_s)
        sys.exit("no weights: the disk is full")
    Worker.then = then
    Path(os.environ["LETTERPRESS_WORKER_TOKEN_FILE"]).read_text()
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["LETTERPRESS_WORKER_PORT"])), Worker).serve_forever()


def run_router() -> None:
    environ = os.environ
    data = Path(environ["LETTERPRESS_ROUTER_DATA_DIR"])
    data.mkdir(parents=True, exist_ok=True)
    AdminApp.store = data / "workers.json"
    AdminApp.key = Path(environ["LETTERPRESS_ROUTER_ADMIN_KEY_FILE"]).read_text().strip()
    socket = Path(environ["LETTERPRESS_ROUTER_SOCKET"])
    socket.unlink(missing_ok=True)
    public = UnixServer(str(socket), PublicApp)
    socket.chmod(0o666)
    threading.Thread(target=public.serve_forever, daemon=True).start()
    port = int(environ["LETTERPRESS_ROUTER_ADMIN_PORT"])
    ThreadingHTTPServer((environ["LETTERPRESS_ROUTER_ADMIN_HOST"], port), AdminApp).serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        loading, then = (sys.argv[2:] + ["0", "ready"][len(sys.argv[2:]) :])[:2]
        run_worker(float(loading), then)
    else:
        run_router()
