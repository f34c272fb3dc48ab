"""Whether what lies in a cache is whole, told from its own indexes and names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from worker.weights import cache, licences

NAME = "owner/some--weights"


def lay(root: Path, commit: str, contents: dict[str, bytes], *, main: bool = True) -> Path:
    """A snapshot as the hub's client lays it."""
    home = root / "models--owner--some--weights"
    for name, data in contents.items():
        blob = home / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = home / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if main:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(commit)
    return home / "snapshots" / commit


WHOLE = {
    "model_index.json": json.dumps({"_class_name": "P", "vae": ["diffusers", "V"], "extra": [None, None]}).encode(),
    "vae/model.safetensors.index.json": json.dumps({"weight_map": {"a": "m-1.safetensors"}}).encode(),
    "vae/m-1.safetensors": b"weights",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(cache, "RUNPOD", tmp_path / "runpod")
    return tmp_path / "own"


def test_nothing_is_found_where_nothing_lies(root: Path) -> None:
    assert cache.find(NAME) is None
    assert list(cache.every()) == []


def test_a_whole_snapshot_is_found_by_its_name(root: Path) -> None:
    folder = lay(root, "c1", WHOLE)
    found = cache.find(NAME)
    assert found
    assert (found.folder, found.commit, found.whole) == (folder, "c1", True)
    assert found.bytes == sum(map(len, WHOLE.values()))
    assert [each.repository for each in cache.every()] == [NAME]


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        ("vae/m-1.safetensors", ("vae/m-1.safetensors", "*.safetensors")),
        ("vae/model.safetensors.index.json", ()),
        ("model_index.json", ()),
    ],
)
def test_what_the_indexes_name_has_to_be_there(root: Path, without: str, missing: tuple[str, ...]) -> None:
    lay(root, "c1", {name: data for name, data in WHOLE.items() if name != without})
    found = cache.find(NAME)
    assert found
    assert found.missing == missing


def test_a_component_without_a_file_is_missing(root: Path) -> None:
    index = json.dumps({"vae": ["d", "V"], "transformer": ["d", "T"]}).encode()
    lay(root, "c1", WHOLE | {"model_index.json": index})
    found = cache.find(NAME)
    assert found
    assert found.missing == ("transformer/",)


def test_a_link_whose_contents_are_gone_is_missing(root: Path) -> None:
    folder = lay(root, "c1", WHOLE)
    (folder / "vae" / "m-1.safetensors").resolve().unlink()
    found = cache.find(NAME)
    assert found
    assert "vae/m-1.safetensors" in found.missing


def test_a_whole_snapshot_goes_before_a_newer_one_in_part_and_main_before_others(root: Path) -> None:
    lay(root, "old", WHOLE)
    lay(root, "new", {"model_index.json": WHOLE["model_index.json"]})
    found = cache.find(NAME)
    assert found
    assert found.commit == "old"
    lay(root, "newest", WHOLE | {"more": b"1"}, main=False)
    lay(root, "main", WHOLE | {"more": b"2"})
    lay(root, "late", WHOLE | {"more": b"3"}, main=False)
    found = cache.find(NAME)
    assert found
    assert found.commit == "main"


def test_what_runpod_laid_down_is_used_where_there_is_nothing_of_our_own(root: Path, tmp_path: Path) -> None:
    folder = lay(tmp_path / "runpod", "c1", WHOLE)
    found = cache.find(NAME)
    assert found
    assert found.folder == folder
    assert cache.caches()[0] == root  # downloads never go to RunPod's


@pytest.mark.parametrize("size", [0, 5, 100_000])
def test_damage_is_told_by_the_digest_in_the_name_of_the_contents(root: Path, size: int) -> None:
    folder = lay(root, "c1", WHOLE | {"big": b"x" * size, "plain": b"p"})
    told: list[int] = []
    assert list(cache.damaged(folder, told.append)) == []
    assert sum(told) == sum(map(len, WHOLE.values())) + size + 1
    (folder / "plain").resolve().write_bytes(b"q")
    assert list(cache.damaged(folder, told.append)) == ["plain"]


def test_gits_digest_of_a_small_file_is_its_own(tmp_path: Path) -> None:
    data = b"hello\n"
    small = tmp_path / "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    small.write_bytes(data)
    assert cache.sound(small, small.name)


def test_a_yes_is_written_once_and_a_torn_one_is_none(tmp_path: Path) -> None:
    first = licences.accept(tmp_path, NAME, "L", licences.Way.COMMAND)
    assert licences.accept(tmp_path, NAME, "M", licences.Way.SETTING) == first
    assert licences.accepted(tmp_path, NAME) == first
    (written,) = (tmp_path / licences.FOLDER).iterdir()
    written.write_text(written.read_text()[:20])
    assert licences.accepted(tmp_path, NAME) is None
