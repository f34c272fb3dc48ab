"""A user who types `letterpress weights`, and what a snapshot should hold afterwards."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.emulators.hub import Repository

NAME = "ideogram-ai/ideogram-4-nf4-diffusers"
OPEN = "somebody/open-weights"
LETTERPRESS = Path(sys.executable).parent / "letterpress"
SIZE = 3_000_000
YES = "--accept-license"


@dataclass
class Shell:
    """Types commands as a user with this environment."""

    environment: dict[str, str]
    said: str = ""

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [LETTERPRESS, "weights", *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit status and everything that was printed."""
        process = self.start(*arguments, **environment)
        said, _ = process.communicate(timeout=120)
        self.said += said
        return process.returncode, said


def snapshot(cache: Path, repository: Repository) -> Path:
    return cache / f"models--{NAME.replace('/', '--')}" / "snapshots" / repository.commit


def require_whole(cache: Path, repository: Repository) -> None:
    """The snapshot holds what serves, byte by byte, and nothing else."""
    folder = snapshot(cache, repository)
    here = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    there = {name: path.read_bytes() for name, path in repository.files().items()}
    assert here == {name: data for name, data in there.items() if not name.endswith((".md", ".png"))}
