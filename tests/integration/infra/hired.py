"""A user of `letterpress` whose stack `hired` is rented from an emulated Spheron."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from infra.emulate.server import Emulator
from infra.emulate.spheron import KEY
from infra.paths import repository_root
from tests.ports import free_ports

HEAD = """\
name: hired
cloud: spheron
model: tiny
budget_per_hour: 5
router: {{edge: {{port: {}}}, admin: {{port: {}}}}}
pools:
  interactive: {{{interactive}, first_port: {}}}
  batch: {{{batch}, first_port: {}}}
"""


@dataclass
class Person:
    """Who has the stack file, in `folder`, and the account."""

    folder: Path
    emulator: Emulator

    @property
    def file(self) -> Path:
        return self.folder / "hired.yaml"

    @property
    def stack_id(self) -> str:
        """Drawn by the first command that wants it."""
        return (self.folder / "home/hired/stack-id").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        account = {"SPHERON_API_URL": self.emulator.url, "SPHERON_API_KEY": KEY}
        return {**os.environ, **account, "LETTERPRESS_HOME": str(self.folder / "home")}

    def describes(self, interactive: str, batch: str) -> None:
        """Write the stack file, with settings of its two pools."""
        self.file.write_text(HEAD.format(*free_ports(4), interactive=interactive, batch=batch))

    def words(self, verb: str, *options: str) -> list[str]:
        return [sys.executable, "-c", "from infra.cli import main; main()", verb, str(self.file), *options]

    def letterpress(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        """A command that nobody sits in front of."""
        return subprocess.run(
            self.words(verb, *options),
            env=self.environment,
            cwd=repository_root(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
