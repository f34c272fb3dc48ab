"""A stack of one's own, driven through the Makefile as a user drives it."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
TAKE_IT_BARE = {"deploy", "preview", "destroy", "watch", "sweep", "status"}
"""Verbs whose argument the stack is; others have an option for it."""
CHANGES_THE_ENDPOINT = {"deploy", "destroy"}
QUICK = {"prompt": "a small picture, at once", "width": 256, "height": 256, "steps": 1}

DESCRIPTION = """\
name: {name}
cloud: local
model: tiny
router:
  edge: {{host: 127.0.0.1, port: {edge}}}
  admin: {{host: 127.0.0.1, port: {admin}}}
  webhook_allow: [127.0.0.1]
pools:
  interactive: {{machines: 2, market: on_demand, first_port: {first}}}
  batch: {{machines: 1, market: spot, first_port: {batch}}}
"""


@dataclass
class UserStack:
    """One stack with its own name, ports and folders. `folder` holds the file and all state."""

    folder: Path
    name: str = field(default_factory=lambda: f"t-{uuid.uuid4().hex[:8]}")
    deployed: str = ""
    _endpoint: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        edge, admin, first, batch = _spaced_ports()
        self.file = self.folder / f"{self.name}.yaml"
        self.file.write_text(DESCRIPTION.format(name=self.name, edge=edge, admin=admin, first=first, batch=batch))
        self.ports = [edge, admin, first, first + 1, batch]
        self.root = self.folder / "home" / self.name
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("LETTERPRESS_", "COVERAGE_", "MAKE"))},
            "LETTERPRESS_HOME": str(self.folder / "home"),
        }
        if pulumi := os.environ.get("LETTERPRESS_PULUMI"):
            self.environment["LETTERPRESS_PULUMI"] = pulumi

    def make(self, target: str, *settings: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run one target to its end; nothing is asserted of how it ends."""
        if target in CHANGES_THE_ENDPOINT:
            self._endpoint = None
        return subprocess.run(
            self.command(target, *settings),
            cwd=REPOSITORY,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def command(self, target: str, *settings: str) -> list[str]:
        return ["make", "--no-print-directory", target, f"STACK={self.file}", *settings]

    def ok(self, target: str, *settings: str, timeout: float = 300) -> str:
        """Run one target that must succeed; what it printed."""
        done = self.make(target, *settings, timeout=timeout)
        assert done.returncode == 0, f"make {target} ended {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def words(self, *words: str) -> list[str]:
        """A command line of the console script for this stack."""
        where = [str(self.file)] if words[0] in TAKE_IT_BARE else ["--stack", str(self.file)]
        return [str(REPOSITORY / ".venv/bin/letterpress"), *words, *where]

    def letterpress(self, *words: str, within_s: float = 120) -> str:
        """Run the console script, which must succeed; what it printed."""
        done = subprocess.run(
            self.words(*words),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, (
            f"letterpress {' '.join(words)} ended {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def endpoint(self) -> dict[str, Any]:
        """Asked for once: a command takes as long as an image here."""
        if self._endpoint is None:
            self._endpoint = json.loads(self.ok("endpoint"))
        return self._endpoint

    def client(self) -> httpx.Client:
        endpoint = self.endpoint()
        headers = {"Authorization": f"Bearer {endpoint['api_key']}"}
        return httpx.Client(base_url=endpoint["url"], headers=headers, timeout=120, trust_env=False)

    def units(self) -> dict[str, int]:
        """The recorded pid of every unit, by the unit's name."""
        records = {path.stem: json.loads(path.read_text()) for path in self.root.glob("**/units/*.json")}
        return {name: int(record["pid"]) for name, record in records.items()}

    def database(self) -> sqlite3.Connection:
        """The router's, to be read."""
        (path,) = (self.root / "router").rglob("*.db")
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def processes(self) -> list[str]:
        """Command lines of all processes that carry this stack's folder in their command line or environment."""
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            try:
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if os.fsencode(self.root) in text:
                found.append(f"{process.name} {command}")
        return found


def _spaced_ports() -> tuple[int, int, int, int]:
    """Ports for edge, admin, the interactive pool (and the one after it), the batch pool."""
    while True:
        edge, admin, first, batch = free_ports(4)
        if first + 1 not in (edge, admin, batch) and first < 65_000:
            return edge, admin, first, batch


def pasted_command(output: str) -> str:
    """The example call that `make deploy` printed, as a person would copy it."""
    match = re.search(r"^\s*(?:Try it\s+)?(curl .*)$", output, re.MULTILINE)
    assert match, f"no curl command in:\n{output}"
    return match[1]


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def ended(client: httpx.Client, job: str) -> dict[str, Any] | None:
    """The job as the router tells of it, once it has ended."""
    view: dict[str, Any] = client.get(f"/v1/jobs/{job}").raise_for_status().json()
    return view if view["state"] in ("succeeded", "failed", "cancelled") else None
