"""What is hidden behind the rendering of one image: the text of the next, the file of the last."""

from __future__ import annotations

import asyncio

from tests.unit.worker.scripted import Clock, ScriptedEngine, ready_runner, request, story, until
from worker.contract import Accepted, Failed, FailureType, Finished, Started, WorkerState
from worker.engine import EngineBrokenError, InvalidRequestError


async def test_the_text_of_the_accepted_is_encoded_while_the_running_one_is_rendered() -> None:
    engine = ScriptedEngine(gated=True)
    async with ready_runner(engine) as runner:
        runner.put("a.1", request(1))
        engine.prepare_one()
        await until(lambda: engine.active, "the first is rendered")
        runner.put("b.1", request(2))
        await until(lambda: engine.prepared == [request(1), request(2)], "the second is prepared")
        assert engine.asked == [request(1)]
        engine.prepare_one()
        engine.finish()
        await until(lambda: engine.asked == [request(1), request(2)], "the second is rendered")
        assert (runner.status().running, runner.status().encoding) == ("b.1", "a.1")
        engine.finish()
        engine.encode_one()
        engine.encode_one()


async def test_the_next_image_is_rendered_and_another_accepted_while_the_last_becomes_a_file() -> None:
    engine = ScriptedEngine(gated=True)
    async with ready_runner(engine) as runner:
        for _ in range(3):
            engine.prepare_one()
        first, second = runner.put("a.1", request(1)), runner.put("b.1", request(2))
        engine.finish()
        await until(lambda: runner.status().running == "b.1", "the second has its turn")
        assert isinstance(second.events[-1], Started)
        third = runner.put("c.1", request(3))
        assert first.end is None
        assert runner.put("a.1", request(1)) is first
        engine.encode_one()
        assert isinstance((await story(first))[-1], Finished)
        for _ in range(2):
            engine.finish()
            engine.encode_one()
        assert isinstance((await story(second))[-1], Finished)
        assert isinstance((await story(third))[-1], Finished)


async def test_images_do_not_heap_up_before_a_slow_encoder() -> None:
    engine = ScriptedEngine(gated=True)
    async with ready_runner(engine) as runner:
        for _ in range(3):
            engine.prepare_one()
        runner.put("a.1", request(1))
        runner.put("b.1", request(2))
        engine.finish()
        await until(lambda: runner.status().encoding == "a.1", "the first is encoded")
        third = runner.put("c.1", request(3))
        engine.finish()
        await until(lambda: len(engine.asked) == 2 and not engine.active, "the second is rendered")
        assert (runner.status().running, runner.status().accepted) == ("b.1", "c.1")
        assert engine.asked == [request(1), request(2)]
        for _ in range(3):
            engine.encode_one()
        engine.finish()
        assert isinstance((await story(third))[-1], Finished)


async def test_a_prompt_that_is_refused_fails_before_its_turn_and_frees_its_place() -> None:
    engine = ScriptedEngine(gated=True)
    async with ready_runner(engine) as runner:
        engine.prepare_one()
        running = runner.put("a.1", request(1))
        await until(lambda: engine.active, "the first is rendered")
        refused = runner.put("b.1", request(2))
        engine.prepare_one(InvalidRequestError("prompt: has 3000 tokens"))
        accepted, end = await story(refused)
        assert isinstance(accepted, Accepted)
        assert isinstance(end, Failed)
        assert end.type is FailureType.INVALID_REQUEST
        assert runner.status().accepted is None
        engine.finish()
        engine.encode_one()
        assert isinstance((await story(running))[-1], Finished)


async def test_a_device_that_is_lost_while_preparing_gives_the_running_one_back() -> None:
    engine = ScriptedEngine(gated=True)
    async with ready_runner(engine) as runner:
        engine.prepare_one()
        running = runner.put("a.1", request(1))
        await until(lambda: engine.active, "the first is rendered")
        lost = runner.put("b.1", request(2))
        engine.prepare_one(EngineBrokenError("CUDA error: an illegal memory access"))
        for generation, kind in ((lost, FailureType.ENGINE_ERROR), (running, FailureType.DRAINING)):
            end = (await story(generation))[-1]
            assert isinstance(end, Failed)
            assert (end.type, end.retryable) == (kind, True)
            assert "illegal memory access" in end.detail
        assert runner.status().state is WorkerState.BROKEN
        engine.finish()


async def test_what_waits_is_queued_and_what_is_worked_at_is_not() -> None:
    engine, clock = ScriptedEngine(gated=True), Clock()

    async with ready_runner(engine, clock=clock) as runner:
        engine.prepare_one()
        first, second = runner.put("a.1", request(1)), runner.put("b.1", request(2))
        await until(lambda: len(engine.prepared) == 2, "the second is prepared")
        clock.advance(1)  # the first is rendered, the second prepared
        engine.prepare_one()
        await until(lambda: not runner._stages._turns.locked(), "the second is ready")
        clock.advance(10)
        engine.finish()
        await until(lambda: len(engine.asked) == 2, "the second has its turn")
        await until(lambda: engine.encoding.acquire(blocking=False), "the first is encoded")
        clock.advance(2)  # the second is rendered, the first encoded
        engine.finish()
        await until(lambda: runner._encoder._waiters, "the second waits for its file")
        clock.advance(5)
        engine.encode_one()
        await until(lambda: engine.encoding.acquire(blocking=False), "the second is encoded")
        clock.advance(3)
        engine.encode_one()
        ends = [(await story(generation))[-1] for generation in (first, second)]
        assert [end.timings.total for end in ends if isinstance(end, Finished)] == [18, 21]
        assert [end.timings.encode for end in ends if isinstance(end, Finished)] == [7, 3]
        assert [end.timings.queued for end in ends if isinstance(end, Finished)] == [0, 15]


async def test_draining_waits_for_the_file_too() -> None:
    engine = ScriptedEngine(gated=True)
    async with ready_runner(engine) as runner:
        engine.prepare_one()
        generation = runner.put("a.1", request())
        engine.finish()
        await until(lambda: runner.status().encoding, "it is encoded")
        drained = asyncio.create_task(runner.drain("told to stop"))
        await asyncio.sleep(0)
        assert not drained.done()
        engine.encode_one()
        await drained
        assert isinstance(generation.end, Finished)
