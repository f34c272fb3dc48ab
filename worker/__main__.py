"""`python -m worker`: one process that owns one GPU, from its environment to its exit status.

Answers at once and loads behind it. Exits 0 after it was told to stop and has drained, 70 when it broke or
was made to leave earlier, 1 when it hung altogether (start it again), 78 when its settings or weights are
wrong (starting it again changes nothing).
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from functools import partial
from types import FrameType

import structlog
import uvicorn
import uvloop

from worker import logs
from worker.app import create_app
from worker.engine import Description, Engine, EngineError, LoadError, MakeEngine
from worker.identity import identity
from worker.metrics import Metrics
from worker.runner import Limits, Observer, Runner
from worker.settings import PREFIX, TINY, EngineName, EngineSettings, Settings, SettingsError, is_folder
from worker.stages import LOOKS, Patience
from worker.weights import licences
from worker.weights.catalogue import KNOWN

EXIT_BROKEN = 70  # sysexits.h: EX_SOFTWARE
EXIT_CONFIG = 78  # sysexits.h: EX_CONFIG
COLLECT_S = 5.0
"""How long a stopping worker holds the door open for whoever still fetches a finished image."""
CLOSE_S = 5
"""How long open connections may take after that, their last bytes included."""

log = structlog.get_logger("worker")


class _Server(uvicorn.Server):
    """uvicorn that drains before it closes: its own answer to SIGTERM is to stop listening at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told_to_stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Once: drain. Twice: leave now."""
        if self.told_to_stop.is_set():
            self.force_exit = self.should_exit = True
        log.info("told to stop", signal=signal.Signals(sig).name)
        self._loop.call_soon_threadsafe(self.told_to_stop.set)


def make_engine(settings: EngineSettings) -> Engine:
    """The configured engine. Imports torch, so it is called in the engine's thread."""
    match settings.engine:
        case EngineName.FAST:
            from worker.engine.fast import FastEngine  # noqa: PLC0415

            return FastEngine(
                settings.model,
                settings.device,
                settings.cache_dir,
                settings.tier,
                settings.warm_sizes,
                settings.cpu_threads,
            )
        case EngineName.REFERENCE:
            from worker.engine.reference import ReferenceEngine  # noqa: PLC0415

            return ReferenceEngine(settings.model, settings.device, settings.cache_dir, settings.cpu_threads)


def make_runner(make: MakeEngine, settings: EngineSettings, observer: Observer) -> Runner:
    """A runner of what `make` makes, as it is configured. Call it in its event loop."""
    return Runner(
        make,
        Description(model=settings.model, engine=settings.engine, device=settings.device, tier=settings.tier),
        clock=time.monotonic,
        observer=observer,
        limits=Limits(
            keep_finished_s=settings.keep_finished_s,
            drain_grace_s=settings.drain_grace_s,
            blocked_share=settings.blocked_share,
            metadata=settings.metadata,
            patience=Patience(load_s=settings.load_stall_s, work_s=settings.stall_s),
        ),
        identity=identity(),
    )


async def serve(make: MakeEngine, settings: Settings, token: str, listener: socket.socket) -> int:
    """Serve the engine that `make` makes on `listener` until told to stop or broken; the exit status."""
    metrics = Metrics()
    runner = make_runner(make, settings, metrics)
    metrics.follow(runner.status, lambda: runner.kept.bytes)
    app = create_app(runner, metrics, token)
    server = _Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=CLOSE_S))
    loading = asyncio.create_task(runner.load())
    ending = asyncio.create_task(_until_the_end(runner, server, loading))
    awake = asyncio.create_task(_stay_awake(loading, settings))
    try:
        await server.serve(sockets=[listener])
    finally:
        awake.cancel()
        faulthandler.cancel_dump_traceback_later()
    if ending.done():
        status = ending.result()
    else:
        ending.cancel()  # told twice
        status = EXIT_BROKEN
    if not runner.close():
        # The engine is within a call that may never return, and an interpreter must not be torn down under it.
        log.warning("leaving the engine in the midst of its work")
        logging.shutdown()
        os._exit(status)
    return status


async def _until_the_end(runner: Runner, server: _Server, loading: asyncio.Task[BaseException | None]) -> int:
    """Wait until told to stop or broken; have the server close."""
    stopped, broken = asyncio.create_task(server.told_to_stop.wait()), asyncio.create_task(runner.broken.wait())
    try:
        await asyncio.wait({stopped, broken}, return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            error = await loading
            if error is not None and not isinstance(error, EngineError):
                log.error("the engine failed while it was loaded", exc_info=error)
            status = EXIT_CONFIG if isinstance(error, LoadError) else EXIT_BROKEN
        else:
            await runner.drain("told to stop")
            # What it drained may have broken it.
            status = EXIT_BROKEN if runner.broken.is_set() else 0
        await runner.collected(COLLECT_S)
        return status
    finally:
        for task in (stopped, broken, loading):
            task.cancel()
        server.should_exit = True


async def _stay_awake(loading: asyncio.Task[BaseException | None], settings: Settings) -> None:
    """Keep putting off an end that comes without this loop.

    An engine that hangs with the interpreter's lock in its hand stops everything here, and nobody is left to
    notice. faulthandler's clock runs in a thread that needs no interpreter: it writes where every thread is to
    stderr, and exits with 1. (A process that was stopped for that long ends so too, when it goes on.)
    """
    between_s = min(settings.stall_s, settings.load_stall_s) / LOOKS
    while not loading.done():
        faulthandler.dump_traceback_later(settings.load_stall_s, exit=True)
        await asyncio.wait({loading}, timeout=between_s)
    while True:
        faulthandler.dump_traceback_later(settings.stall_s, exit=True)
        await asyncio.sleep(between_s)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"{PREFIX}PORT: cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
            "end what holds it, or take another port"
        ) from error
    log.info("listening", host=settings.host, port=listener.getsockname()[1])
    return listener


def accept_license(settings: EngineSettings) -> None:
    """Write down the yes that the settings give, if they do."""
    if settings.accept_license and settings.model != TINY and not is_folder(settings.model):
        # Before the hub was asked only a licence that is known has a name.
        name = next((known.licence.name for known in KNOWN if known.repository == settings.model), "")
        licences.accept(settings.cache_dir, settings.model, name, licences.Way.SETTING)


def main() -> int:
    try:
        settings = Settings.from_environment()
        token = settings.read_token()
        accept_license(settings)
        logs.configure(settings.log_level, settings.log_format)
        listener = _listen(settings)
    except (SettingsError, LoadError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return EXIT_CONFIG
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(partial(make_engine, settings), settings, token, listener))


if __name__ == "__main__":
    sys.exit(main())
