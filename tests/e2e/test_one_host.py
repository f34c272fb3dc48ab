"""One bare machine, from `make deploy` to an image and away again: the short walk, of which `test_hosts_stack` is the
long one."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hosts.scan import open_ports
from tests.hosts.stack import hosts_stack

pytestmark = [pytest.mark.e2e, pytest.mark.engine]


def test_a_bare_machine_comes_to_serve_shows_nothing_but_ssh_and_is_left_without_a_trace(tmp_path: Path) -> None:
    with hosts_stack(tmp_path, [{"user": "ubuntu"}]) as stack:
        (one,) = stack.machines.values()
        stack.ok("deploy")
        with stack.client() as client:
            wanted = {"prompt": "a press", "width": 256, "height": 256, "steps": 2}
            made = client.post("/generate", json=wanted).raise_for_status().json()
        assert base64.b64decode(made["image"]).startswith(b"\x89PNG")
        assert f"127.0.0.1:{stack.ports[2]}" in one.inside("ss", "-Hltn")
        with ThreadPoolExecutor(1) as scanning:
            scanned = scanning.submit(open_ports, one.address)
            assert "Nothing to change" in stack.ok("deploy")
            assert scanned.result() == {22}
        assert "is gone" in stack.ok("destroy")
        assert stack.processes() == []
        left = "ls -d /var/lib/letterpress /etc/letterpress /etc/systemd/system/letterpress-* 2>/dev/null || :"
        assert one.inside("sh", "-c", left) == ""
