"""A router on a machine of its own and a worker on another, from bare to serving and back, as the Makefile does it."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.hosts.apart import admin_open, apart
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.soak]


def test_a_router_and_a_worker_on_machines_of_their_own_come_to_serve_and_leave_without_a_trace(
    tmp_path: Path,
) -> None:
    with apart(tmp_path) as stack:
        stack.ok("deploy", timeout=900)
        assert stack.image().startswith(b"\x89PNG")
        assert "Nothing to change" in stack.ok("deploy")

        status = stack.ok("status")
        assert re.search(r"^edge +running", status, re.MULTILINE)
        assert re.search(r"^router +running", status, re.MULTILINE)
        assert re.search(r"^interactive-1 +ready", status, re.MULTILINE)
        assert "router      " in stack.ok("logs")
        assert re.search(r" up .*open", stack.verb("tunnels").stdout)
        with admin_open(stack) as url:
            assert httpx.get(f"{url}/workers", trust_env=False).json()[0]["name"] == "interactive-1"

        stack.front.restart()
        eventually(stack.served, 120, "the router's machine comes back by itself")

        stack.worker.stop()
        stack.ok("destroy")
        left = (
            "ls -d /var/lib/letterpress /etc/letterpress /etc/systemd/system/letterpress-* /run/lp-*; nft list tables"
        )
        assert stack.front.inside("sh", "-c", f"{left} 2>/dev/null || :") == ""
        assert stack.processes() == []
