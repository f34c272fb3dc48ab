"""A digest of a package's source: what tells an upgraded program from the one that is running.

A unit runs as long as its description stays the same. Without this, `git pull && make deploy` would say
that nothing has changed while yesterday's code goes on serving.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path


def code_fingerprint(*packages: str) -> str:
    """16 hex digits that change with any Python file of these packages, which are found and not imported."""
    digest = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"{package} is not an installed package")
        root = Path(spec.submodule_search_locations[0])
        for file in sorted(root.rglob("*.py")):
            digest.update(f"{package}/{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
