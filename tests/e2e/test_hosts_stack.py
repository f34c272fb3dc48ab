"""Machines that a user has already, from bare to serving and back, as the Makefile does it."""

from __future__ import annotations

import base64
import socket
from pathlib import Path

import httpx
import pytest

from tests.hosts.stack import HostsStack, hosts_stack
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.soak]


def image(stack: HostsStack) -> bytes:
    with stack.client() as client:
        answer = client.post("/generate", json={"prompt": "a press", "width": 256, "height": 256, "steps": 2})
        answer.raise_for_status()
        return base64.b64decode(answer.json()["image"])


def served(stack: HostsStack) -> bool:
    try:
        return image(stack).startswith(b"\x89PNG")
    except httpx.HTTPError:
        return False


def test_two_bare_machines_come_to_serve_and_leave_without_a_trace(tmp_path: Path) -> None:
    with hosts_stack(tmp_path, [{}, {"user": "ubuntu"}]) as stack:
        first, second = stack.machines.values()
        stack.ok("deploy")
        assert image(stack).startswith(b"\x89PNG")
        for one in stack.machines.values():
            for port in stack.ports:
                with pytest.raises(OSError, match=r"refused|timed out"):
                    socket.create_connection((one.address, port), 0.3)
        assert "Nothing to change" in stack.ok("deploy")

        first.restart()
        eventually(lambda: served(stack), 120, "the other worker goes on, and this one comes back by itself")
        eventually(lambda: stack.ok("status").count(" ready ") == 2, 120, "both are ready again")

        second.new_host_key()
        refused = stack.make("deploy")
        assert refused.returncode != 0
        assert "is not the one that was met there first" in refused.stdout + refused.stderr

        first.stop()
        said = stack.ok("destroy")
        assert said.count("still has what the stack put there") == 2, "neither answers as it should"
        assert f"({first.address})" in said
        assert stack.processes() == []
