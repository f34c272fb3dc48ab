"""Randomness of a test that is another in each run, and can be had again."""

from __future__ import annotations

import os
import random

VARIABLE = "TEST_SEED"


def drawn() -> random.Random:
    """From a seed that is said, so that pytest shows it with a failure: TEST_SEED=… draws the same."""
    seed = int(os.environ.get(VARIABLE) or random.SystemRandom().getrandbits(32))
    print(f"{VARIABLE}={seed}")
    return random.Random(seed)
