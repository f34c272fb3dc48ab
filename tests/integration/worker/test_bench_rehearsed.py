"""The parts of the GPU bench that a card's time is dearest for run to their end, tiny and on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.report import AGAIN, COMPILED, table

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.soak


def rehearsed(tmp_path: Path, *words: str) -> dict[str, dict[str, object]]:
    kept = tmp_path / "bench.json"
    command = [
        sys.executable,
        "-m",
        "tests.gpu.bench",
        "--rehearse",
        "--json",
        str(kept),
        "--work",
        str(tmp_path),
        *words,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(kept.read_text())
    assert "a rehearsal on a CPU" in str(found["card"])
    return found


def test_serving_is_measured_with_look_ahead_on_and_off_and_a_second_start_counts_its_kernels(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, "--part", "served", "--served-tier", "fp8-attention", "--requests", "3")
    row = found["served, fp8-attention"]
    assert row["requests"] == 3
    for key in ("seconds an image, look-ahead on", "seconds an image, look-ahead off", "first start", "second start"):
        assert isinstance(row[key], float)
    said = row["second start, by stage"]
    assert isinstance(said, dict)
    assert said["kernels_built"] == 0, "a CPU builds none"


def test_the_script_and_its_compiled_form_are_measured_beside_each_other(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, "--part", "compiled")
    assert {AGAIN, COMPILED} <= found["rows"].keys()
    assert COMPILED in table(found)
