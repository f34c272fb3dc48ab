"""Stored images: whole or not at all, one file an attempt."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import ids
from router.artifacts.local import LocalArtifacts
from router.errors import ArtifactError

JOB = ids.job_id(1, bytes(10))


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_what_was_put_is_found_with_its_digest(tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path)
    image = await artifacts.put(f"{JOB}.1", b"pixels", "image/png")
    assert await artifacts.read(image) == b"pixels"
    assert (await artifacts.place(image, 60)).path.read_bytes() == b"pixels"
    assert (image.sha256, image.bytes, image.media_type) == (hashlib.sha256(b"pixels").hexdigest(), 6, "image/png")


async def test_putting_the_same_again_changes_nothing(tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path)
    assert await artifacts.put(f"{JOB}.1", b"x", "image/png") == await artifacts.put(f"{JOB}.1", b"x", "image/png")
    assert len(files(tmp_path)) == 1


async def test_only_what_was_kept_is_left_of_a_job(tmp_path: Path) -> None:
    artifacts, other_job = LocalArtifacts(tmp_path), ids.job_id(2, bytes(10))
    await artifacts.put(f"{JOB}.1", b"lost", "image/png")
    kept = await artifacts.put(f"{JOB}.2", b"kept", "image/png")
    other = await artifacts.put(f"{other_job}.1", b"other", "image/png")
    await artifacts.keep_only(JOB, kept)
    assert sorted(files(tmp_path)) == sorted([tmp_path / kept.path, tmp_path / other.path])
    await artifacts.keep_only(JOB, None)
    assert files(tmp_path) == [tmp_path / other.path]


async def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    root.write_text("a file where a folder should be")
    with pytest.raises(ArtifactError, match=rf"the image of {JOB}\.1 could not be stored under"):
        await LocalArtifacts(root).put(f"{JOB}.1", b"x", "image/png")
    assert files(tmp_path) == [root]


async def test_an_image_that_was_removed_by_hand_is_named(tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path)
    image = await artifacts.put(f"{JOB}.1", b"x", "image/png")
    (tmp_path / image.path).unlink()
    with pytest.raises(ArtifactError, match="is no longer in"):
        await artifacts.place(image, 60)
    with pytest.raises(ArtifactError, match="is no longer in"):
        await artifacts.read(image)


async def test_an_image_that_rotted_on_the_disk_is_not_handed_out_as_itself(tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path)
    image = await artifacts.put(f"{JOB}.1", b"pixels", "image/png")
    (tmp_path / image.path).write_bytes(b"slexip")
    with pytest.raises(ArtifactError, match="is not the one that was stored"):
        await artifacts.read(image)


async def test_the_group_may_read_whatever_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        root = tmp_path / "artifacts"
        image = await LocalArtifacts(root).put(f"{JOB}.1", b"x", "image/png")
    finally:
        os.umask(before)
    path = root / image.path
    assert [stat.S_IMODE(at.stat().st_mode) for at in (path, path.parent)] == [0o640, 0o750]


async def test_the_first_mark_stands(tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path / "artifacts")
    assert await artifacts.mark() is None
    assert [await artifacts.set_mark("one"), await artifacts.set_mark("two"), await artifacts.mark()] == ["one"] * 3
    assert [path.name for path in files(tmp_path)] == ["letterpress-artifacts"]


async def test_a_check_leaves_nothing_and_says_what_is_wrong(tmp_path: Path) -> None:
    await LocalArtifacts(tmp_path).check()
    assert files(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=f"no image can be stored under {tmp_path}/file: Not a directory"):
        await LocalArtifacts(tmp_path / "file").check()


async def test_images_of_one_moment_are_spread_over_folders(tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path)
    for number in range(8):
        await artifacts.put(f"{ids.job_id(1, bytes(9) + bytes([number]))}.1", b"x", "image/png")
    assert len({path.parent for path in files(tmp_path)}) == 8


@settings(deadline=None)  # it waits for the disk
@given(st.binary(min_size=1))
async def test_names_tell_contents_apart(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    artifacts = LocalArtifacts(tmp_path_factory.mktemp("artifacts"))
    one = await artifacts.put(f"{JOB}.1", data, "image/png")
    other = await artifacts.put(f"{JOB}.1", data + b"!", "image/png")
    assert await artifacts.read(one) == data
    assert await artifacts.read(other) == data + b"!"
