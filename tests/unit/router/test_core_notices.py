"""The hub: what subscribers see, and what is kept."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from router.contract import JobState, Progress
from router.jobs import Job
from router.notices import Notices
from tests.stores import request

JOB = Job("job_1", "key_1", "interactive", JobState.RUNNING, request(), 1, 0, 0, None, None, None)
ENDED = replace(JOB, state=JobState.SUCCEEDED)


def step(number: int, attempt: int = 1) -> Progress:
    return Progress(attempt=attempt, step=number, steps=20)


async def test_a_slow_subscriber_misses_steps_but_never_the_last_state() -> None:
    notices = Notices()
    async with notices.subscribe(JOB.id) as ticks:
        for number in range(1, 21):
            notices.progress(JOB.id, step(number))
        notices.publish(ENDED)
        tick = await anext(ticks)
        assert (tick.job, tick.progress) == (ENDED, None)


async def test_progress_after_a_change_does_not_hide_the_change() -> None:
    notices = Notices()
    async with notices.subscribe(JOB.id) as ticks:
        notices.publish(JOB)
        notices.progress(JOB.id, step(1))
        tick = await anext(ticks)
        assert (tick.job, tick.progress) == (JOB, step(1))


async def test_every_subscriber_is_told() -> None:
    notices = Notices()
    async with notices.subscribe(JOB.id) as one, notices.subscribe(JOB.id) as other:
        notices.publish(JOB)
        assert (await anext(one)).job == (await anext(other)).job == JOB


async def test_nothing_new_means_waiting() -> None:
    notices = Notices()
    async with notices.subscribe(JOB.id) as ticks:
        notices.publish(JOB)
        await anext(ticks)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(ticks), 0.01)
        notices.publish(ENDED)
        assert (await asyncio.wait_for(anext(ticks), 1)).job == ENDED  # a timeout loses nothing


def test_steps_of_an_older_attempt_are_not_news() -> None:
    notices = Notices()
    notices.progress(JOB.id, step(3, attempt=2))
    notices.progress(JOB.id, step(9, attempt=1))
    assert notices.latest_progress(JOB.id) == step(3, attempt=2)


def test_a_new_attempt_begins_without_the_old_ones_progress() -> None:
    notices = Notices()
    notices.progress(JOB.id, step(9))
    notices.publish(replace(JOB, attempt=2))
    assert notices.latest_progress(JOB.id) is None


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.RUNNING])
def test_nothing_is_kept_of_a_job_that_does_not_run(state: JobState) -> None:
    notices = Notices()
    notices.progress(JOB.id, step(9))
    notices.publish(replace(JOB, state=state))
    assert notices.latest_progress(JOB.id) is None


async def test_nothing_is_kept_of_a_subscriber_that_left() -> None:
    notices = Notices()
    async with notices.subscribe(JOB.id):
        pass
    assert not notices._subscribers


def test_listeners_hear_of_every_change_and_of_nothing_that_is_only_shown() -> None:
    notices, heard = Notices(), list[Job]()
    notices.listen(heard.append)
    notices.publish(JOB)
    notices.publish(ENDED)
    notices.show(ENDED)
    assert heard == [JOB, ENDED]
