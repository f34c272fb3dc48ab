"""The same request makes the same bytes, whatever is prepared, rendered and encoded around it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.worker.scripted import DESCRIPTION, PATIENCE_S, Witness
from worker.contract import Finished, GenerationRequest
from worker.engine.reference import ReferenceEngine
from worker.generation import Generation
from worker.runner import Limits, Runner

WANTED = GenerationRequest(prompt="three foxes reading the morning paper", width=256, height=256, steps=6, seed=7)
OTHERS = [
    GenerationRequest(prompt=prompt, width=width, height=256, steps=4, seed=seed)
    for seed, (prompt, width) in enumerate([("a hen", 256), ("a very long story " * 60, 512), ("狐", 272)])
]


async def ended(generation: Generation) -> None:
    async with asyncio.timeout(PATIENCE_S * 4):
        async for _ in generation.follow(heartbeat_s=PATIENCE_S):
            pass
    assert isinstance(generation.end, Finished), generation.end


async def test_alone_and_in_company_it_makes_the_same_bytes(tiny_cache: Path) -> None:
    runner = Runner(
        lambda: ReferenceEngine("tiny", "cpu", tiny_cache, cpu_threads=1),
        DESCRIPTION,
        clock=asyncio.get_running_loop().time,
        observer=Witness(),
        limits=Limits(),
    )
    try:
        assert await runner.load() is None
        await ended(runner.put("alone.1", WANTED))
        previous: Generation | None = None
        for place, request in enumerate([OTHERS[0], WANTED, OTHERS[1], WANTED, OTHERS[2]]):
            following = runner.put(f"company{place}.1", request)
            if previous:
                await ended(previous)  # the one behind it is prepared meanwhile
            previous = following
        assert previous
        await ended(previous)
        assert runner.image("alone.1") == runner.image("company1.1") == runner.image("company3.1")
    finally:
        runner.close()
