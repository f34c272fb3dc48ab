"""What operators ask of a router on a machine of its own, each by the way of SSH; and a second one who takes over."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.hosts.apart import Apart, admin_open, apart
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.soak]


@contextmanager
def receiver(address: str) -> Iterator[tuple[str, list[str]]]:
    """Where webhooks go; their paths as they come."""
    heard: list[str] = []

    class Heard(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            heard.append(self.path)
            self.send_response(204)
            self.end_headers()

    with http.server.ThreadingHTTPServer((address, 0), Heard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{address}:{server.server_port}", heard
        finally:
            server.shutdown()


def all_is_asked(stack: Apart, key: str) -> None:
    """Keys, usage, webhooks, status, logs, tunnels, console; watch, which has nothing to do. `key` names a new one."""
    made = stack.letterpress("keys", "create", key).split()[0]
    assert stack.image(made).startswith(b"\x89PNG")
    assert re.search(rf"^{key} ", stack.letterpress("keys", "list"), re.MULTILINE)
    assert re.search(r"^all +1 +0\.1 ", stack.letterpress("keys", "usage", key), re.MULTILINE)
    stack.letterpress("keys", "revoke", key)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        stack.image(made)

    with receiver(stack.front.network.here) as (url, heard):
        stack.post("/v1/jobs", webhook=f"{url}/{key}")
        eventually(lambda: heard == [f"/{key}"], 60, "the job's owner is told")
    assert f"/{key}" in stack.letterpress("webhooks", "list", "--state", "delivered")

    assert re.search(r"^interactive-1 +ready", stack.ok("status"), re.MULTILINE)
    assert re.search(r"^router +", stack.ok("logs"), re.MULTILINE)
    assert re.search(r" up .*open", stack.verb("tunnels").stdout)
    assert "rents nothing: there is nothing to watch" in stack.verb("watch", "--once").stderr
    with admin_open(stack) as console:
        assert httpx.get(f"{console}/workers", trust_env=False).json()[0]["name"] == "interactive-1"
        assert "letterpress" in httpx.get(f"{console}/metrics", trust_env=False).text


def test_a_second_operator_takes_a_router_elsewhere_over_with_the_passphrase_and_asks_it_as_the_first_does(
    tmp_path: Path,
) -> None:
    with apart(tmp_path) as stack:
        stack.ok("deploy", timeout=900)
        all_is_asked(stack, "ada")

        stack.certificate.rename(tmp_path / "only-the-firsts")
        guessed = stack.taken_over("guessed").verb("bundle", "pull")
        assert guessed.returncode == 1
        assert "the passphrase does not open its bundle" in guessed.stderr
        second = stack.taken_over((stack.root / "secrets" / "bundle-passphrase").read_text().strip())
        assert second.verb("status").returncode == 1, "nothing of the stack is here yet"
        taken = second.verb("bundle", "pull")
        assert "Took over the keys" in taken.stdout, taken.stderr
        all_is_asked(second, "grace")
        running = ("pgrep", "-f", "[-]m router|nginx: worker")
        before = stack.front.inside(*running)
        assert "Nothing to change" in second.ok("deploy")
        assert stack.front.inside(*running) == before

        second.ok("destroy")
        left = "ls -d /var/lib/letterpress /etc/letterpress /etc/systemd/system/letterpress-* /run/lp-*"
        for one in (stack.front, stack.worker):
            assert one.inside("sh", "-c", f"{left} 2>/dev/null || :") == ""
