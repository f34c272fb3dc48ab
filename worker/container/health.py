"""The container's health check: whether its worker can answer. Standard library alone: it runs every few seconds.

`server` and `pod` listen on a port and are asked there. `serverless` listens nowhere: it is there, or the
container is not.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_S = 4.0
DEFAULT_PORT = 8100  # worker.settings; importing it would cost more than asking


def main() -> int:
    """0 is healthy, 1 is not."""
    if _serverless():
        return 0
    port = _port()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/livez")
        return 0 if connection.getresponse().status == http.client.OK else 1
    except OSError as error:
        print(f"the worker does not answer on port {port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()


def _port() -> int:
    """As the entry point has it: RunPod's load balancer says PORT."""
    return int(os.environ.get("LETTERPRESS_WORKER_PORT") or os.environ.get("PORT") or DEFAULT_PORT)


def _serverless() -> bool:
    return "RUNPOD_WEBHOOK_GET_JOB" in os.environ


if __name__ == "__main__":
    sys.exit(main())
