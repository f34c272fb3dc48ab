"""A worker without a GPU: the contract's HTTP, plain-coloured images, and a pace and faults that a test sets.

Run as a process of its own (`python -m tests.emulators.paced_worker --port 0 --token …`, which prints its
URL), so that it can be killed and frozen like a real one; `tests.emulators.paced_process` does that for a
test. `PUT /emulator` changes its `Pace` while it runs and `GET /emulator` shows its `Ledger`: what it was
asked and what it made.

Prompts of more than 2048 words are refused as the real one refuses tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import monotonic

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.emulators.pace import SPANS, Fault, Ledger, Pace, Span
from tests.emulators.plain_png import png
from worker.contract import (
    EVENTS_AND_IMAGE_MEDIA_TYPE,
    EVENTS_MEDIA_TYPE,
    GENERATION_ID,
    MAX_BODY_BYTES,
    MAX_PROMPT_TOKENS,
    PROBLEM_MEDIA_TYPE,
    WITH_IMAGE,
    Accepted,
    Failed,
    FailureType,
    Finished,
    Frozen,
    GenerationRequest,
    Problem,
    ProblemType,
    Started,
    Step,
    Timings,
    WorkerState,
    WorkerStatus,
)
from worker.presets import sampling

PLACES = 2


@dataclass
class Generation:
    request: GenerationRequest
    fault: Fault
    events: list[Accepted | Started | Step | Finished | Failed] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    cancelled: bool = False
    image: bytes = b""
    ended_at: float = 0.0

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished | Failed)

    async def say(self, event: Accepted | Started | Step | Finished | Failed) -> None:
        self.events.append(event)
        self.ended_at = monotonic()
        async with self.news:
            self.news.notify_all()


class RefusalError(Exception):
    """A request ends here, with this problem."""

    def __init__(self, kind: ProblemType, status: int, detail: str, errors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.problem = Problem(type=kind, title=kind.value, status=status, detail=detail, errors=errors or [])


class PacedWorker:
    """The emulator itself; `app()` is its HTTP."""

    def __init__(self, token: str, machine: str = "") -> None:
        self._token = token
        self._machine = machine
        self._process = secrets.token_hex(8)
        self._pace = Pace()
        self._generations: dict[str, Generation] = {}
        self._gpu = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ledger: dict[str, list[str]] = {"started": [], "finished": [], "fetched": [], "cancelled": []}
        self._asked = 0
        self._running: str | None = None
        self._spans: list[Span] = []

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/livez", _alive),
                Route("/readyz", self._ready),
                Route("/generations/{id}", self._put, methods=["PUT"]),
                Route("/generations/{id}", self._delete, methods=["DELETE"]),
                Route("/generations/{id}/image", self._image),
                Route("/emulator", self._control, methods=["GET", "PUT"]),
                Route("/emulator/spans", self._tell_spans),
                Route("/make/{name}", self._make, methods=["POST"]),
            ],
            exception_handlers={RefusalError: _refused},
        )

    async def _control(self, request: Request) -> Response:
        if request.method == "PUT":
            self._pace = Pace.model_validate_json(await request.body())
        return _json(Ledger(**self._ledger, asked=self._asked))

    async def _tell_spans(self, _request: Request) -> Response:
        return Response(SPANS.dump_json(self._spans), media_type="application/json")

    async def _make(self, request: Request) -> Response:
        """What a worker without a contract has: ask, wait for your turn, get the image. For comparisons."""
        body = GenerationRequest.model_validate_json(await request.body())
        async with self._gpu:
            begun = monotonic()
            for _ in range(sampling(body).steps):
                await asyncio.sleep(self._pace.step_s)
            await asyncio.sleep(self._pace.tail_s)
            self._spans.append(Span(name=str(request.path_params["name"]), begun=begun, ended=monotonic()))
        return Response(png(body, self._pace.padding), media_type="image/png")

    async def _ready(self, _request: Request) -> Response:
        state = self._pace.state
        waiting = [name for name, it in self._generations.items() if not it.ended and name != self._running]
        status = WorkerStatus(
            state=state,
            reason="" if state is WorkerState.READY else f"told to be {state.value}",
            version="0",
            model=self._pace.model,
            engine="paced",
            device="none",
            running=self._running,
            accepted=waiting[0] if waiting else None,
            contract=self._pace.contract,
            process=self._process,
            machine=self._machine,
        )
        return _json(status, 200 if state is WorkerState.READY else 503)

    async def _put(self, request: Request) -> Response:
        self._asked += 1
        name = self._name(request)
        content = await request.body()
        if len(content) > MAX_BODY_BYTES:
            raise RefusalError(ProblemType.TOO_LARGE, 413, f"the body is over {MAX_BODY_BYTES} bytes")
        try:
            body = GenerationRequest.model_validate_json(content)
        except ValidationError as error:
            errors = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise RefusalError(ProblemType.INVALID_REQUEST, 422, "the body is no request", errors) from error
        generation = self._find(name) or self._begin(name, body)
        if generation.request != body:
            raise RefusalError(ProblemType.CONFLICT, 409, "this id was started with another body")
        with_image = request.query_params.get(WITH_IMAGE) == "true"
        media_type = EVENTS_AND_IMAGE_MEDIA_TYPE if with_image else EVENTS_MEDIA_TYPE
        return StreamingResponse(self._follow(name, generation, with_image=with_image), media_type=media_type)

    async def _delete(self, request: Request) -> Response:
        name = self._name(request)
        self._ledger["cancelled"].append(name)
        generation = self._generations.get(name)
        if generation is not None and generation.fault is not Fault.DEAF:
            generation.cancelled = True
            if name != self._running and not generation.ended:
                detail = "cancelled before it started"
                await generation.say(Failed(id=name, type=FailureType.CANCELLED, detail=detail, retryable=False))
        return Response(status_code=204)

    async def _image(self, request: Request) -> Response:
        name = self._name(request)
        generation = self._find(name)
        if generation is None and name in self._generations:
            raise RefusalError(ProblemType.GONE, 410, f"the image of {name} was kept for its time")
        if generation is None or (generation.ended and not generation.image):
            raise RefusalError(ProblemType.NOT_FOUND, 404, f"no image of {name}")
        if not generation.image:
            raise RefusalError(ProblemType.NOT_FINISHED, 409, f"{name} has no image yet")
        headers = {"Content-Length": str(len(generation.image))}
        return StreamingResponse(self._handed_over(name, generation), headers=headers, media_type="image/png")

    def _name(self, request: Request) -> str:
        """The generation that a request with the right token names."""
        if request.headers.get("authorization") != f"Bearer {self._token}":
            raise RefusalError(ProblemType.UNAUTHORIZED, 401, "wrong token")
        name = str(request.path_params["id"])
        if not re.fullmatch(GENERATION_ID, name):
            raise RefusalError(ProblemType.INVALID_REQUEST, 422, f"{name!r} is no generation id", [f"id: {name!r}"])
        return name

    def _find(self, name: str) -> Generation | None:
        """The generation, unless it has ended and been kept for its time."""
        found = self._generations.get(name)
        kept = found is None or not found.ended or monotonic() - found.ended_at <= self._pace.keep_s
        return found if kept else None

    def _begin(self, name: str, body: GenerationRequest) -> Generation:
        if self._pace.state is not WorkerState.READY:
            raise RefusalError(ProblemType.NOT_READY, 503, f"told to be {self._pace.state.value}")
        taken = sum(not generation.ended for generation in self._generations.values())
        if self._pace.fault is Fault.BUSY or taken >= PLACES:
            raise RefusalError(ProblemType.BUSY, 503, "both places are taken")
        generation = self._generations[name] = Generation(body, self._next_fault())
        generation.events.append(Accepted(id=name))
        task = asyncio.create_task(self._generate(name, generation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return generation

    def _next_fault(self) -> Fault:
        fault, times = self._pace.fault, self._pace.times
        if times == 0:
            return Fault.NONE
        if times is not None:
            self._pace = self._pace.model_copy(update={"times": times - 1})
        return fault

    async def _generate(self, name: str, generation: Generation) -> None:
        arrived = monotonic()
        async with self._gpu:
            if generation.ended:
                return
            self._running, begun = name, monotonic()
            try:
                end = await self._denoise(name, generation, monotonic() - arrived)
            finally:
                self._running = None
                self._spans.append(Span(name=name, begun=begun, ended=monotonic()))
        await generation.say(end)

    async def _denoise(self, name: str, generation: Generation, queued: float) -> Finished | Failed:
        request, began = generation.request, monotonic()
        if (words := len(request.text.split())) > MAX_PROMPT_TOKENS:
            detail = f"the prompt has {words} tokens; at most {MAX_PROMPT_TOKENS} are possible"
            return Failed(id=name, type=FailureType.INVALID_REQUEST, detail=detail, retryable=False)
        self._ledger["started"].append(name)
        steps = sampling(request).steps
        await generation.say(Started(id=name, steps=steps))
        for step in range(1, steps + 1):
            await asyncio.sleep(self._pace.step_s)
            if generation.cancelled:
                return Failed(id=name, type=FailureType.CANCELLED, detail="cancelled", retryable=False)
            await generation.say(Step(id=name, step=step, steps=steps))
            if generation.fault is Fault.DIE:
                os._exit(1)
        await asyncio.sleep(self._pace.tail_s)
        if generation.fault is Fault.CRASH:
            return Failed(id=name, type=FailureType.ENGINE_ERROR, detail="told to crash", retryable=True)
        generation.image = png(request, self._pace.padding)
        self._ledger["finished"].append(name)
        announced = b"another image" if generation.fault is Fault.DIGEST else generation.image
        took = monotonic() - began
        return Finished(
            id=name,
            sha256=hashlib.sha256(announced).hexdigest(),
            bytes=len(generation.image),
            width=request.width,
            height=request.height,
            seed=request.seed,
            is_image_safe=not self._pace.suspicion,
            safety_reason=self._pace.suspicion,
            timings=Timings(queued=queued, text=0, denoise=took, decode=0, encode=0, total=queued + took),
        )

    async def _follow(self, name: str, generation: Generation, *, with_image: bool) -> AsyncIterator[bytes]:
        told = 0
        while True:
            while told < len(generation.events):
                event = generation.events[told]
                told += 1
                yield event.model_dump_json().encode() + b"\n"
                if isinstance(event, Finished) and with_image and self._find(name):
                    async for piece in self._handed_over(name, generation):
                        yield piece
                if isinstance(event, Finished | Failed):
                    return
                if isinstance(event, Step) and generation.fault is Fault.DROP:
                    generation.fault = Fault.NONE
                    raise ConnectionAbortedError("told to drop the connection")
                if isinstance(event, Started) and generation.fault is Fault.SILENT:
                    await asyncio.Event().wait()
            try:
                async with asyncio.timeout(self._pace.heartbeat_s), generation.news:
                    while told == len(generation.events):
                        await generation.news.wait()
            except TimeoutError:
                yield b"\n"

    def _handed_over(self, name: str, generation: Generation) -> AsyncIterator[bytes]:
        self._ledger["fetched"].append(name)
        if generation.fault is Fault.DROP_IMAGE:
            generation.fault = Fault.NONE
            return _broken(generation.image)
        return _whole(generation.image)


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _broken(data: bytes) -> AsyncIterator[bytes]:
    yield data[: len(data) // 2]
    raise ConnectionAbortedError("told to drop the connection")


async def _alive(_request: Request) -> Response:
    return JSONResponse({})


def _json(value: Frozen, status: int = 200) -> Response:
    return Response(value.model_dump_json(), status, media_type="application/json")


async def _refused(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RefusalError):
        raise TypeError("this handler is for refusals") from error
    problem = error.problem
    headers = {"Retry-After": "1"} if problem.status == 503 else {}
    return Response(problem.model_dump_json(), problem.status, headers, media_type=PROBLEM_MEDIA_TYPE)


def main() -> None:
    parser = argparse.ArgumentParser(description="A worker without a GPU, for tests.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--port", type=int, help="on 127.0.0.1; 0 for a free one")
    where.add_argument("--socket", help="path of a unix socket")
    parser.add_argument("--token", required=True)
    parser.add_argument("--machine", default="", help="the machine that it says it is on")
    arguments = parser.parse_args()
    with socket.socket(socket.AF_INET if arguments.socket is None else socket.AF_UNIX) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # it may begin again where it was killed
        listener.bind(arguments.socket or ("127.0.0.1", arguments.port))
        listener.listen(128)
        name = listener.getsockname()
        print(f"unix:{name}" if arguments.socket else f"http://127.0.0.1:{name[1]}", flush=True)
        asyncio.run(_serve(PacedWorker(arguments.token, arguments.machine), listener))


async def _serve(worker: PacedWorker, listener: socket.socket) -> None:
    config = uvicorn.Config(worker.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    main()
