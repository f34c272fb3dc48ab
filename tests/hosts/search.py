"""Where a secret lies: in files, as their owner sees them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from infra.emulate.hosts.machine import TestMachine


def files(folder: Path) -> Iterator[Path]:
    """Every regular file below a folder, sockets and links left out."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path


def places(machine: TestMachine) -> Iterator[tuple[str, Path]]:
    """All that a machine wrote, on its disk and in its memory: a file's name there, and where it is read from here."""
    upper = machine.disk / "upper"
    for path in files(upper):
        part, *rest = path.relative_to(upper).parts
        yield "/".join(("", part.replace("-", "/"), *rest)), path
    run = Path(f"/proc/{machine.init_pid}/root/run")
    for path in files(run):
        yield str(Path("/run", path.relative_to(run))), path


def holds(path: Path, texts: Collection[bytes]) -> set[bytes]:
    """Those of `texts` that a file has in it; none if it is gone meanwhile."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return set()
    return {text for text in texts if text in content}
