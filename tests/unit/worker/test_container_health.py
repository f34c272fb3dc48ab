"""The container's health check asks where its worker listens."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from worker.container import health


class Alive(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.mark.parametrize("variable", ["LETTERPRESS_WORKER_PORT", "PORT"])
def test_it_finds_the_port_that_either_variable_names(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("LETTERPRESS_WORKER_PORT", "PORT", "RUNPOD_WEBHOOK_GET_JOB"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Alive) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        monkeypatch.setenv(variable, str(server.server_port))
        assert health.main() == 0
        answering.join()
