"""A thousand PUTs of one id, as from a router whose retries have run wild."""

from __future__ import annotations

import asyncio

import httpx

from tests.integration.worker.misbehaviour.rig import asking_for, ready
from tests.integration.worker.process import TOKEN, Start
from worker.contract import EVENT, Finished

PUTS = 1000


def test_they_share_one_image_and_all_hear_the_same(start: Start) -> None:
    worker = ready(start)
    body = asking_for("a fox", steps=100).model_dump_json()

    async def everyone() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            base_url=worker.http.base_url, headers=headers, limits=limits, timeout=120, trust_env=False
        ) as http:
            answers = await asyncio.gather(*(http.put("/generations/a.1", content=body) for _ in range(PUTS)))
        assert {answer.status_code for answer in answers} == {200}
        return [answer.text.replace("\n\n", "\n") for answer in answers]

    stories = asyncio.run(everyone())
    assert len(stories) == PUTS
    ends = {story.splitlines()[-1] for story in stories}
    assert len(ends) == 1
    assert isinstance(EVENT.validate_json(ends.pop()), Finished)
    assert worker.log.read_text().count("generation ended") == 1
