"""An emulated hub with a repository, and a shell that knows it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulators.hub import TOKEN_ACCEPTED, TOKEN_OTHER, Hub, Repository, hub
from tests.integration.worker.weights.rig import NAME, OPEN, SIZE, Shell


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Files of a repository in diffusers' layout, with bytes that are nobody's weights."""
    folder = tmp_path / "on-the-hub"
    drawn = random.Random(4)
    index = {"_class_name": "Ideogram4Pipeline", "transformer": ["diffusers", "T"], "vae": ["diffusers", "V"]}
    shards = {f"layer.{n}": f"model-{n}.safetensors" for n in (1, 2)}
    contents = {
        "model_index.json": json.dumps(index).encode(),
        "README.md": b"read me",
        "assets/sample.png": b"a picture",
        "transformer/model.safetensors.index.json": json.dumps({"weight_map": shards}).encode(),
        "transformer/model-1.safetensors": drawn.randbytes(SIZE),
        "transformer/model-2.safetensors": drawn.randbytes(SIZE // 10),
        "vae/diffusion_pytorch_model.safetensors": drawn.randbytes(SIZE // 20),
    }
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Repository(folder)


@pytest.fixture
def served(repository: Repository) -> Iterator[Hub]:
    with hub({NAME: repository, OPEN: Repository(repository.folder, gated=False)}) as running:
        yield running


@pytest.fixture
def shell(served: Hub, tmp_path: Path) -> Iterator[Shell]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LETTERPRESS_"))}
    typed = Shell(
        kept
        | {
            "HF_ENDPOINT": served.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN_ACCEPTED,
            "LETTERPRESS_WORKER_CACHE_DIR": str(tmp_path / "worker"),
            "NO_PROXY": "*",
        }
    )
    yield typed
    written = "".join(
        path.read_text(errors="replace")
        for path in tmp_path.rglob("*")
        if path.is_file() and path.stat().st_size < 10_000
    )
    for token in (TOKEN_ACCEPTED, TOKEN_OTHER):
        assert token not in typed.said
        assert token not in written
