"""Whatever dies: every job that was taken on ends exactly once, and every image can be read."""

from __future__ import annotations

import os
import random

import pytest

from tests.reliability.chaos import chaos, run

SHORT_SEED = 6
SOAK_RUNS = int(os.environ.get("SOAK_RUNS", "10"))
SOAK_FAULTS = 40


async def test_each_kind_of_fault_at_least_once_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async with chaos(SHORT_SEED) as made:
        wanted = list(made.faults)
        made.draw.shuffle(wanted)
        account = await run(made, SHORT_SEED, wanted, at_once=4)
    with capsys.disabled():
        print(f"\n{account}")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SOAK_RUNS))
async def test_a_long_run_of_random_faults_loses_nothing(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    async with chaos(seed) as made:
        wanted = random.Random(seed).choices(list(made.faults), k=SOAK_FAULTS)
        account = await run(made, seed, wanted, at_once=3)
    with capsys.disabled():
        print(f"\n{account}")
