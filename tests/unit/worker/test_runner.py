"""The runner's promises, one by one; `test_runner_machine` tries them in every order."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.worker.scripted import (
    PATIENCE_S,
    Clock,
    ScriptedEngine,
    file_of,
    ready_runner,
    request,
    scripted_runner,
    story,
    until,
)
from worker.contract import Accepted, Event, Failed, FailureType, Finished, Started, Step, WorkerState
from worker.engine import (
    EngineBrokenError,
    InvalidRequestError,
    LoadError,
    OutOfMemoryError,
    TooLargeError,
)
from worker.failures import (
    BusyError,
    ConflictError,
    ImageGoneError,
    NotFinishedError,
    NotReadyError,
    UnknownGenerationError,
)
from worker.runner import Limits


def failed(events: list[Event]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


async def test_a_generation_tells_its_story_in_order_and_leaves_its_image() -> None:
    async with ready_runner(ScriptedEngine(hurried=True)) as runner:
        events = await story(runner.put("a.1", request()))
        assert [type(event) for event in events] == [Accepted, Started, Step, Step, Step, Finished]
        assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3]
        assert runner.image("a.1") == file_of(request())


async def test_a_thousand_puts_of_one_id_make_one_image() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:

        async def put() -> list[Event]:
            return await story(runner.put("a.1", request()))

        followers = [asyncio.create_task(put()) for _ in range(1000)]
        await until(lambda: engine.active, "the engine was asked")
        engine.step()
        engine.finish()
        stories = await asyncio.gather(*followers)
        assert len(engine.asked) == 1
        assert all(events == stories[0] for events in stories)
        assert isinstance(stories[0][-1], Finished)


async def test_who_joins_late_hears_everything_from_the_beginning() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        generation = runner.put("a.1", request())
        engine.step()
        await until(lambda: len(generation.events) == 3, "the first step")
        late = asyncio.create_task(story(runner.put("a.1", request())))
        engine.finish()
        assert await late == await story(generation)
        assert [type(event) for event in await late] == [Accepted, Started, Step, Finished]


async def test_another_request_under_the_same_id_is_a_conflict_before_and_after_the_end() -> None:
    async with ready_runner(ScriptedEngine(hurried=True)) as runner:
        generation = runner.put("a.1", request(seed=1))
        with pytest.raises(ConflictError, match=r"a\.1"):
            runner.put("a.1", request(seed=2))
        await story(generation)
        with pytest.raises(ConflictError, match="another id"):
            runner.put("a.1", request(seed=2))


async def test_one_runs_one_waits_and_the_third_is_told_busy() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        first, second = runner.put("a.1", request(1)), runner.put("b.1", request(2))
        assert (runner.status().running, runner.status().accepted) == ("a.1", "b.1")
        with pytest.raises(BusyError, match=r"a\.1 runs and b\.1"):
            runner.put("c.1", request(3))
        engine.finish()
        engine.finish()
        await story(first)
        await story(second)
        assert engine.asked == [request(1), request(2)]
        assert engine.most_active == 1


async def test_cancelling_what_is_accepted_ends_it_at_once_and_frees_its_place() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        running, accepted = runner.put("a.1", request(1)), runner.put("b.1", request(2))
        runner.cancel("b.1")
        assert failed(await story(accepted)).type is FailureType.CANCELLED
        assert runner.status().accepted is None
        engine.finish()
        assert isinstance((await story(running))[-1], Finished)
        assert engine.asked == [request(1)]


async def test_cancelling_what_runs_ends_it_after_the_step_that_it_is_in() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        generation = runner.put("a.1", request(steps=100))
        await until(lambda: engine.active, "the engine was asked")
        runner.cancel("a.1")
        assert runner.status().running == "a.1"
        engine.step()
        events = await story(generation)
        assert [event.step for event in events if isinstance(event, Step)] == [1]
        assert (failed(events).type, failed(events).retryable) == (FailureType.CANCELLED, False)


async def test_cancelling_what_has_ended_or_never_was_changes_nothing() -> None:
    async with ready_runner(ScriptedEngine(hurried=True)) as runner:
        await story(runner.put("a.1", request()))
        runner.cancel("a.1")
        runner.cancel("never.1")
        assert runner.image("a.1")


async def test_a_follower_that_leaves_does_not_end_the_generation() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        generation = runner.put("a.1", request())
        follower = generation.follow(PATIENCE_S)
        await anext(follower)
        await follower.aclose()
        engine.finish()
        assert isinstance((await story(generation))[-1], Finished)


async def test_an_image_is_not_there_before_the_end_and_gone_after_its_time() -> None:
    engine, clock = ScriptedEngine(), Clock()
    async with ready_runner(engine, clock=clock, limits=Limits(keep_finished_s=600)) as runner:
        with pytest.raises(UnknownGenerationError):
            runner.image("a.1")
        generation = runner.put("a.1", request())
        with pytest.raises(NotFinishedError):
            runner.image("a.1")
        engine.finish()
        await story(generation)
        clock.now += 600
        assert runner.image("a.1")
        clock.now += 1
        with pytest.raises(ImageGoneError):
            runner.image("a.1")


async def test_an_image_too_large_for_the_device_is_one_for_another_worker_and_no_fault_of_this_one() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        for name in ("a.1", "b.1", "c.1"):
            generation = runner.put(name, request())
            engine.fail(TooLargeError("width, height: 2048x2048 needs 90.0 GiB"))
            end = failed(await story(generation))
            assert (end.type, end.retryable) == (FailureType.TOO_LARGE, True)
            assert end.detail == "width, height: 2048x2048 needs 90.0 GiB"
        assert runner.status().state is WorkerState.READY


async def test_a_refused_request_says_why_and_is_not_to_be_retried() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        generation = runner.put("a.1", request())
        engine.fail(InvalidRequestError("prompt: has 3000 tokens"))
        end = failed(await story(generation))
        assert (end.type, end.retryable) == (FailureType.INVALID_REQUEST, False)
        assert end.detail == "prompt: has 3000 tokens"
        with pytest.raises(UnknownGenerationError, match="3000 tokens"):
            runner.image("a.1")
        assert runner.status().state is WorkerState.READY


async def test_out_of_memory_once_is_a_failure_to_retry_and_the_worker_goes_on() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        for generation_id in ("a.1", "c.1"):
            generation = runner.put(generation_id, request())
            engine.fail(OutOfMemoryError("too large"))
            end = failed(await story(generation))
            assert (end.type, end.retryable) == (FailureType.OUT_OF_MEMORY, True)
            between = runner.put("b.1", request())
            engine.finish()
            await story(between)
        assert runner.status().state is WorkerState.READY


async def test_out_of_memory_twice_in_a_row_breaks_the_worker() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        for generation_id in ("a.1", "b.1"):
            generation = runner.put(generation_id, request())
            engine.fail(OutOfMemoryError("too large"))
            await story(generation)
        await asyncio.wait_for(runner.broken.wait(), PATIENCE_S)
        assert runner.status().state is WorkerState.BROKEN
        assert "too large" in runner.status().reason


async def test_a_device_error_tells_everyone_and_breaks_the_worker() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        running, accepted = runner.put("a.1", request(1)), runner.put("b.1", request(2))
        engine.fail(EngineBrokenError("CUDA error: an illegal memory access"))
        end = failed(await story(running))
        assert (end.type, end.retryable) == (FailureType.ENGINE_ERROR, True)
        unstarted = failed(await story(accepted))
        assert (unstarted.type, unstarted.retryable) == (FailureType.DRAINING, True)
        assert "illegal memory access" in unstarted.detail
        await asyncio.wait_for(runner.broken.wait(), PATIENCE_S)
        assert engine.asked == [request(1)]
        with pytest.raises(NotReadyError, match="illegal memory access"):
            runner.put("c.1", request(3))


@pytest.mark.parametrize(
    ("error", "named"),
    # No future can hold a StopIteration; Python's own generators make a RuntimeError of it too.
    [(KeyError("a secret prompt"), "KeyError"), (StopIteration("a secret prompt"), "RuntimeError")],
)
async def test_an_unforeseen_error_fails_one_generation_without_showing_its_words(error: Exception, named: str) -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        generation = runner.put("a.1", request())
        engine.fail(error)
        end = failed(await story(generation))
        assert (end.type, end.retryable) == (FailureType.ENGINE_ERROR, True)
        assert named in end.detail
        assert "secret" not in end.detail
        assert runner.status().state is WorkerState.READY


async def test_draining_finishes_what_runs_and_what_is_accepted_and_takes_nothing_new() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        running, accepted = runner.put("a.1", request(1)), runner.put("b.1", request(2))
        drained = asyncio.create_task(runner.drain("told to stop"))
        await until(lambda: runner.status().state is WorkerState.DRAINING, "the drain began")
        with pytest.raises(NotReadyError, match="draining: told to stop"):
            runner.put("c.1", request(3))
        assert runner.put("a.1", request(1)) is running
        assert not drained.done()
        engine.finish()
        engine.finish()
        await asyncio.wait_for(drained, PATIENCE_S)
        assert isinstance(running.end, Finished)
        assert isinstance(accepted.end, Finished)


async def test_what_cannot_start_within_the_grace_fails_for_another_worker_to_take() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine, limits=Limits(drain_grace_s=0)) as runner:
        running, accepted = runner.put("a.1", request(1)), runner.put("b.1", request(2))
        drained = asyncio.create_task(runner.drain("told to stop"))
        end = failed(await story(accepted))
        assert (end.type, end.retryable) == (FailureType.DRAINING, True)
        assert not drained.done()
        engine.finish()
        await asyncio.wait_for(drained, PATIENCE_S)
        assert isinstance(running.end, Finished)


async def test_the_door_stays_open_until_the_last_image_is_fetched() -> None:
    async with ready_runner(ScriptedEngine(hurried=True)) as runner:
        await story(runner.put("a.1", request()))
        collected = asyncio.create_task(runner.collected(within_s=PATIENCE_S))
        await asyncio.sleep(0)
        assert not collected.done()
        runner.image("a.1")
        await asyncio.wait_for(collected, PATIENCE_S / 2)


async def test_an_image_that_nobody_fetches_holds_the_door_only_for_its_time() -> None:
    async with ready_runner(ScriptedEngine(hurried=True)) as runner:
        await story(runner.put("a.1", request()))
        await asyncio.wait_for(runner.collected(within_s=0.05), PATIENCE_S)


async def test_it_is_loading_until_a_first_image_was_made() -> None:
    runner = scripted_runner(ScriptedEngine())
    assert (runner.status().state, runner.status().reason) == (WorkerState.LOADING, "starting")
    with pytest.raises(NotReadyError, match="loading"):
        runner.put("a.1", request())
    await runner.load()
    assert (runner.status().state, runner.status().model) == (WorkerState.READY, "scripted")
    runner.close()


async def test_an_engine_that_cannot_be_loaded_leaves_a_broken_worker_that_says_why() -> None:
    error = LoadError("model /nowhere does not exist")
    runner = scripted_runner(ScriptedEngine(loading=error))
    assert await runner.load() is error
    assert runner.broken.is_set()
    assert (runner.status().state, runner.status().reason) == (WorkerState.BROKEN, str(error))
    runner.close()


async def test_a_call_that_never_returns_does_not_keep_the_process() -> None:
    engine = ScriptedEngine()
    async with ready_runner(engine) as runner:
        runner.put("a.1", request())
        await until(lambda: engine.active, "the engine was asked")
        assert not runner.close(timeout_s=0.01)
        engine.finish()
