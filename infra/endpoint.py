"""Where a stack answers, and one call that works when pasted."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import httpx

from infra.edge.certificate import self_signed, trusting
from router.contract import INTERACTIVE

_PROMPT = "a letterpress print shop at night"
_SAVE = "import sys,json,base64; sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin){}))"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`url` is the edge's as clients call it, `near` as this computer reaches it; `admin_url` is the admin app's, on
    the router host's loopback. `certificate` is one that the edge shows and no system need trust."""

    url: str
    admin_url: str
    api_key_file: Path
    admin_key_file: Path
    near: str = ""
    certificate: Path | None = None

    @property
    def transport(self) -> httpx.AsyncHTTPTransport:
        """For our own requests to the edge."""
        if self.certificate is None or not self.certificate.exists():
            return httpx.AsyncHTTPTransport(trust_env=False)
        return httpx.AsyncHTTPTransport(verify=trusting(self.certificate.read_bytes()), trust_env=False)

    def as_json(self) -> str:
        """What scripts read: the addresses, and the keys themselves."""
        return json.dumps(
            {
                "url": self.url,
                "api_key": self.api_key_file.read_text().strip(),
                "admin_url": self.admin_url,
                "admin_key": self.admin_key_file.read_text().strip(),
            },
            indent=2,
        )

    def example(self, cwd: Path, pool: str, picture: str = "first.png") -> str:
        """A shell command that asks a pool for one image and saves it. The key is read when it runs, not shown."""
        if pool == INTERACTIVE:
            path, where = "/generate", '["image"]'
            body: dict[str, str | int] = {"prompt": _PROMPT, "width": 512, "height": 512, "steps": 20}
        else:  # the seed-style dialect has no word for it
            path, where = "/v1/images/generations", '["data"][0]["b64_json"]'
            body = {"prompt": _PROMPT, "size": "512x512", "pool": pool}
        key = shlex.quote(str(relative_to(self.api_key_file, cwd)))
        return (
            f"curl -sS --fail-with-body {self._trust(cwd)}{self.url}{path}"
            f' -H "Authorization: Bearer $(cat {key})"'
            f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
            f" | python3 -c {shlex.quote(_SAVE.format(where))} > {picture}"
        )

    def _trust(self, cwd: Path) -> str:
        """One that signed itself is trusted by name."""
        if self.certificate is None or not self.certificate.exists():
            return ""
        if not self_signed(self.certificate.read_bytes()):
            return ""
        return f"--cacert {shlex.quote(str(relative_to(self.certificate, cwd)))} "


def relative_to(path: Path, cwd: Path) -> Path:
    """`path` as one would type it in `cwd`: relative when it lies below, otherwise whole."""
    relative = Path(os.path.relpath(path, cwd))
    return path if relative.parts[:1] == ("..",) else relative
