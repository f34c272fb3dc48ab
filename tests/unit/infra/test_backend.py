"""Where the Pulumi engine keeps the state, and what it is told of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.state.backend import drop_torn_attributes, for_engine


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ("file:///a folder/#1", "file:///a folder/#1?metadata=skip"),
        ("file:///state?no_tmp_dir=false", "file:///state?no_tmp_dir=false&metadata=skip"),
        ("s3://bucket/folder?region=eu-west-1", "s3://bucket/folder?region=eu-west-1"),
        ("https://api.example.com", "https://api.example.com"),
    ],
)
def test_an_engine_writes_nothing_beside_a_folders_state(described: str, told: str) -> None:
    assert for_engine(described) == told


def test_only_torn_attributes_are_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "a state" / ".pulumi" / "stacks"
    folder.mkdir(parents=True)
    contents = {"torn.json.attrs": "", "half.json.attrs": '{"md5":', "whole.json.attrs": "{}", "state.json": ""}
    for name, text in contents.items():
        (folder / name).write_text(text)
    drop_torn_attributes(f"file://{tmp_path}/a%20state?metadata=skip")
    assert {file.name for file in folder.iterdir()} == {"whole.json.attrs", "state.json"}
