"""One question for all who ask at once, and an answer that ages."""

from __future__ import annotations

import asyncio

import pytest

from router.fresh import Fresh


class Asked:
    """Counts the questions; answers when it is let."""

    def __init__(self) -> None:
        self.count, self.now = 0, 0.0
        self.let = asyncio.Event()
        self.error: Exception | None = None
        self.fresh = Fresh(self.ask, 5.0, lambda: self.now)

    async def ask(self, name: str) -> str:
        self.count += 1
        await self.let.wait()
        if self.error:
            raise self.error
        return f"{name} {self.count}"


async def test_many_who_ask_at_once_are_one_question_and_one_who_leaves_ends_it_for_nobody() -> None:
    asked = Asked()
    waiting = [asyncio.create_task(asked.fresh.of("a")) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    asked.let.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == ["a 1"] * 4


async def test_an_answer_is_good_for_its_time_and_for_its_name() -> None:
    asked = Asked()
    asked.let.set()
    assert [await asked.fresh.of("a"), await asked.fresh.of("a"), await asked.fresh.of("b")] == ["a 1", "a 1", "b 2"]
    asked.now = 5.0
    assert await asked.fresh.of("a") == "a 3"


async def test_a_failure_is_told_and_not_kept() -> None:
    asked = Asked()
    asked.let.set()
    asked.error = LookupError("not now")
    with pytest.raises(LookupError):
        await asked.fresh.of("a")
    asked.error = None
    assert await asked.fresh.of("a") == "a 2"
