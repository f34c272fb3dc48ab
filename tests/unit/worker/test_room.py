"""Memory that somebody gives back is waited for, and nothing else is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from worker.contract import Tier
from worker.engine import InUseError, LoadError, memory, room
from worker.engine.memory import GIB, Model, TextShape
from worker.engine.transformer import Shape

NF4 = Model(Shape(), TextShape(), nf4=True, text_nf4=True)
SQUARE = 1024 * 1024
WHOLE = 79.0


class Gpu:
    """One whose free memory is as it is told, look by look; the last stays."""

    def __init__(self, free_gib: Sequence[float], whole_gib: float = WHOLE) -> None:
        self._free, self._whole = list(free_gib), whole_gib
        self.paused = 0.0
        self.said: list[str] = []

    def look(self) -> tuple[float, float]:
        free = self._free.pop(0) if len(self._free) > 1 else self._free[0]
        return free * GIB, self._whole * GIB

    def pause(self, seconds: float) -> None:
        self.paused += seconds

    def planned(self, tier: Tier = Tier.EXACT) -> memory.Plan:
        plan = partial(memory.plan, NF4, tier, wanted_pixels=SQUARE)
        return room.waited(plan, self.look, lambda: "held by process 7", self.pause, self.said.append)


def test_a_gpu_that_is_free_is_not_waited_for() -> None:
    gpu = Gpu([78])
    assert gpu.planned().free == 78 * GIB
    assert (gpu.paused, gpu.said) == (0, [])


def test_what_a_dying_process_gives_back_is_waited_for_and_said() -> None:
    gpu = Gpu([20, 20, 78])
    assert gpu.planned().free == 78 * GIB
    assert gpu.paused == 2 * room.LOOK_S
    assert gpu.said[0] == "waiting for GPU memory: 20.0 GiB of 79.0 are free, held by process 7"


def test_what_is_never_given_back_is_told_as_a_matter_that_another_start_may_find_otherwise() -> None:
    gpu = Gpu([20])
    with pytest.raises(InUseError, match=r"20\.0 are free.*in use for 60 s, held by process 7: end that"):
        gpu.planned()
    assert gpu.paused == room.WAIT_S
    assert not issubclass(InUseError, LoadError), "its unit is to start it again"


def test_a_gpu_that_is_too_small_is_refused_at_once_with_what_was_free() -> None:
    gpu = Gpu([22], whole_gib=24)
    with pytest.raises(LoadError, match=r"and 22\.0 are free"):
        gpu.planned()
    assert gpu.paused == 0


def test_who_holds_the_gpu_is_told_as_the_driver_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert room.holders("GPU-1") == "held by somebody whom nvidia-smi does not name"
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        f'#!/bin/sh\n[ "$1" = --id=GPU-1 ] && echo "{os.getpid()}, us, 1 MiB\n71, /usr/bin/python3, 35122 MiB"\n'
    )
    smi.chmod(0o755)
    assert room.holders("GPU-1") == "held by process 71 (/usr/bin/python3, 35122 MiB)"
