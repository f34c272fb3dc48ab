"""Whatever dies: every job that was taken on ends exactly once, and every image can be read."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from tests.reliability.account import run
from tests.reliability.alone import alone
from tests.reliability.chaos import Chaos
from tests.reliability.scaled import scaled

SHORT_SEED = 6
SHORT_AWAY_S = 8.0
"""Of the whole batch pool: past two leases, and past the pauses of the breaker."""
SOAK_RUNS = int(os.environ.get("SOAK_RUNS", "10"))
SOAK_FAULTS = 40
SOAK_AWAY_S = 60.0

House = Callable[[int, float], AbstractAsyncContextManager[Chaos]]
both = pytest.mark.parametrize("house", [pytest.param(scaled, id="scaled"), pytest.param(alone, id="alone")])


@both
async def test_each_kind_of_fault_at_least_once_loses_nothing(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    async with house(SHORT_SEED, SHORT_AWAY_S) as made:
        wanted = list(made.faults)
        made.draw.shuffle(wanted)
        account = await run(made, SHORT_SEED, wanted, at_once=4)
    with capsys.disabled():
        print(f"\n{type(made).__name__.lower()}, {account}")


@pytest.mark.soak
@both
@pytest.mark.parametrize("seed", range(SOAK_RUNS))
async def test_a_long_run_of_random_faults_loses_nothing(
    house: House, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with house(seed, SOAK_AWAY_S) as made:
        drawn = random.Random(seed).choices([name for name in made.faults if name != "batch pool gone"], k=SOAK_FAULTS)
        account = await run(made, seed, ["batch pool gone", *drawn], at_once=3)
    with capsys.disabled():
        print(f"\n{type(made).__name__.lower()}, {account}")
