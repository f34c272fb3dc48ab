"""What is installed here as wheels, for machines without a network: a package index in a folder."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OWN = "letterpress"
NOT_PACKED = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def wheels(extra: str, folder: Path) -> Path:
    """Everything that `letterpress[extra]` stands on, each as its own wheel in `folder`."""
    for found in _needed(extra):
        _pack(found, folder)
    return folder


def _needed(extra: str) -> Iterator[Distribution]:
    seen: set[tuple[str, str]] = set()
    left = [(OWN, extra), (OWN, "")]
    told: set[str] = set()
    while left:
        name, wanted = left.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found = distribution(name)
        if name != OWN and name not in told:
            told.add(name)
            yield found
        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                left += [(canonicalize_name(requirement.name), each) for each in ("", *requirement.extras)]


def _pack(found: Distribution, folder: Path) -> None:
    tags = [line.removeprefix("Tag: ") for line in (found.read_text("WHEEL") or "").splitlines() if line[:5] == "Tag: "]
    name = canonicalize_name(found.metadata["Name"]).replace("-", "_")
    file = folder / f"{name}-{found.version}-{_joined(tags)}.whl"
    info = f"{name}-{found.version}.dist-info"
    record = []
    with zipfile.ZipFile(file, "w") as packed:
        for entry in found.files or ():
            path = Path(str(entry))
            if path.parts[0] == ".." or path.suffix == ".pyc" or path.name in NOT_PACKED:
                continue
            inner = str(Path(info, *path.parts[1:])) if path.parts[0].endswith(".dist-info") else str(path)
            content = entry.locate().read_bytes()  # type: ignore[attr-defined]  # a PathLike, in truth a Path
            packed.writestr(inner, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{inner},sha256={digest},{len(content)}")
        packed.writestr(f"{info}/RECORD", "\n".join((*record, f"{info}/RECORD,,", "")))


def _joined(tags: list[str]) -> str:
    """`cp311-cp311-manylinux_2_17_x86_64` and others of one build as one name (PEP 425)."""
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    return "-".join(".".join(sorted(set(part))) for part in parts)
