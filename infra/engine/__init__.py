"""The one package that calls Pulumi's Automation API: preview, up, destroy, and what the state holds.

    with operate("local", paths, resources(...), settings, "deploy") as engine:
        engine.preview(on_progress)
        engine.up(on_progress)

Every operation holds the stack alone, clears what a killed one left, and looks at the world before it
decides (refresh). The Pulumi engine runs with a home of its own in the stack's folder, off the network,
and finds the provider of this Python beside its interpreter.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

from pulumi.automation import Deployment, LocalWorkspace, ProjectBackend, ProjectSettings, Stack
from pulumi.automation.errors import CommandError, ConcurrentUpdateError, StackNotFoundError
from pulumi.automation.events import EngineEvent

from infra.engine.command import EngineCommand, InterruptedBeforeError
from infra.engine.events import EventReader, OnProgress, Outcome, last_words
from infra.engine.guard import MARK, backend_locks, end_orphans, only_operation, orphans, require_orphaned
from infra.engine.state import StackState, mended, recorded
from infra.engine.terse import TerseStack
from infra.errors import InfraError
from infra.paths import HOME, RUN, StackPaths
from infra.planning.program import Declared, declare
from infra.provider.site import STACK
from infra.secrets import PASSPHRASE, SecretStore
from infra.state.backend import drop_torn_attributes, for_engine

PROJECT = "letterpress"
PROVIDER = "pulumi-resource-letterpress"
PARALLEL = 64
"""Steps at once. They wait for machines and weights, not for this computer."""

PROGRAM_ENDS_WITHIN_S = 5.0
"""How long the Python side of a failed operation may take to notice that its engine has gone."""

T = TypeVar("T")


class EngineError(InfraError):
    """The Pulumi engine failed at something that no resource is to blame for."""


class OperationFailedError(EngineError):
    """Some resources could not be brought about; `outcome` says which, and what went well besides."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__("\n".join(str(failure) for failure in outcome.failures))
        self.outcome = outcome


class OnFailure(StrEnum):
    """What becomes of the other resources when one fails."""

    STOP = "stop"  # what runs is finished, and nothing is begun
    GO_ON = "go on"  # all is done that does not wait for the one that failed


class OperationCancelledError(EngineError):
    """A person interrupted the operation, and it stopped cleanly."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`binary` is the Pulumi engine, `backend` the URL of where it keeps the state (`infra.state.backend`)."""

    binary: Path
    backend: str


class _Operation(Protocol):
    """What `Stack.up` and its like have in common."""

    def __call__(self, *, on_event: Callable[[EngineEvent], None], parallel: int) -> object: ...


@contextmanager
def operate(
    stack: str, paths: StackPaths, declared: Sequence[Declared], settings: EngineSettings, what: str
) -> Iterator[Engine]:
    """Hold the stack for one operation, `what` in a word, with nothing of a killed one left.

    Raises BusyError if another operation, here or on another machine, holds it.
    """
    paths.create()
    with only_operation(paths.root / "operation.lock", what), _ending_signals_interrupt():
        if found := orphans(paths.root):
            asyncio.run(end_orphans(found))
        drop_torn_attributes(settings.backend)
        engine = Engine(stack, paths, declared, settings)
        engine.recover()
        yield engine


class Engine:
    """One stack's Pulumi engine. Use it through `operate`; `state` alone is safe without."""

    def __init__(self, stack: str, paths: StackPaths, declared: Sequence[Declared], settings: EngineSettings) -> None:
        self._name = stack
        self._paths = paths
        self._declared = tuple(declared)
        self._command = EngineCommand(settings.binary)
        self._workspace = _workspace(stack, paths, self._program, settings, self._command)
        self._loop: asyncio.AbstractEventLoop | None = None

    def preview(self, on_progress: OnProgress) -> Outcome:
        """What `up` would do. It looks at the world, and changes nothing."""
        stack = self._stack()
        return self._perform(lambda **options: stack.preview(refresh=True, **options), on_progress)

    def up(self, on_progress: OnProgress, on_failure: OnFailure = OnFailure.STOP) -> Outcome:
        """Make the world as declared. OperationFailedError says what could not be done."""
        stack, goes_on = self._stack(), on_failure is OnFailure.GO_ON
        return self._perform(
            lambda **options: stack.up(refresh=True, continue_on_error=goes_on, **options), on_progress
        )

    def destroy(self, on_progress: OnProgress) -> Outcome:
        """End everything that the state holds. What is then left of the stack in the backend is removed."""
        stack = self._stack()
        outcome = self._perform(stack.destroy, on_progress)
        self._run(lambda: self._workspace.remove_stack(self._name))
        return outcome

    def interrupt(self) -> None:
        """From another thread: end what is under way, cleanly; asked again, at once."""
        self._command.interrupt()

    def state(self) -> StackState:
        """The resources as they were last seen; none if there is no such stack."""
        exported = self._export()
        return recorded(exported.deployment if exported else None)

    def recover(self) -> None:
        """Take what a killed operation had begun to create into the state, where the next look finds it."""
        exported = self._export()
        deployment = mended(exported.deployment) if exported else None
        if exported and deployment is not None:
            whole = Deployment(version=exported.version, deployment=dict(deployment))
            try:
                self._unlocked(lambda: self._workspace.import_stack(self._name, whole))
            except CommandError as error:
                raise self._failed(error) from error

    def copy_to(self, other: Engine) -> None:
        """Put this state into another backend's hands, as it is."""
        exported = self._export()
        if exported is None:
            return
        other._stack()
        try:
            other._unlocked(lambda: other._workspace.import_stack(self._name, exported))
        except CommandError as error:
            raise self._failed(error) from error

    def discard(self) -> None:
        """Remove the state from its backend, and leave alone what it describes."""
        if self._export() is not None:
            self._run(lambda: self._workspace.remove_stack(self._name, force=True, preserve_config=True))

    def _export(self) -> Deployment | None:
        try:
            return self._run(lambda: self._workspace.export_stack(self._name))
        except StackNotFoundError:
            return None
        except CommandError as error:
            raise self._failed(error) from error

    def _program(self) -> None:
        self._loop = asyncio.get_running_loop()
        declare(self._declared)

    def _stack(self) -> Stack:
        try:
            return self._run(lambda: TerseStack(self._name, self._workspace))
        except CommandError as error:
            raise self._failed(error) from error

    def _perform(self, operation: _Operation, on_progress: OnProgress) -> Outcome:
        reader = EventReader(on_progress)
        try:
            self._unlocked(lambda: operation(on_event=reader.read, parallel=PARALLEL))
        except CommandError as error:
            outcome = reader.outcome()
            if not outcome.failures:
                raise self._failed(error) from error
            raise OperationFailedError(outcome) from error
        finally:
            self._close_loop()
        outcome = reader.outcome()
        if outcome.failures:
            raise OperationFailedError(outcome)
        return outcome

    def _close_loop(self) -> None:
        """Pulumi's Python side leaves the program's event loop open, with its sockets, when a resource failed."""
        deadline = time.monotonic() + PROGRAM_ENDS_WITHIN_S
        while self._loop and not self._loop.is_closed() and time.monotonic() < deadline:
            if self._loop.is_running():
                time.sleep(0.02)  # in another thread, where it learns that the engine has gone
            else:
                self._loop.close()

    def _unlocked(self, call: Callable[[], T]) -> T:
        """Run what needs the backend's lock; one that a dead process of this host left is cleared first."""
        try:
            return self._run(call)
        except ConcurrentUpdateError as error:
            require_orphaned(backend_locks(str(error)), self._name)
        self._run(lambda: self._stack().cancel())
        return self._run(call)

    def _run(self, call: Callable[[], T]) -> T:
        """Run in another thread, so that an interrupt reaches us and the engine can end in its own time."""
        with ThreadPoolExecutor(1) as executor:
            future = executor.submit(call)
            interrupted = False
            while True:
                try:
                    result = future.result()
                except KeyboardInterrupt:
                    interrupted = True
                    self._command.interrupt()
                except InterruptedBeforeError:
                    raise self._cancelled() from None
                except CommandError as error:
                    if interrupted:
                        raise self._cancelled() from error
                    raise
                else:
                    if interrupted:
                        raise self._cancelled()
                    return result

    def _failed(self, error: CommandError) -> EngineError:
        return EngineError(f"stack {self._name}: {last_words(str(error))}")

    def _cancelled(self) -> OperationCancelledError:
        return OperationCancelledError(
            f"stack {self._name}: interrupted; what was begun is kept, and the same command goes on from there"
        )


def _workspace(
    stack: str, paths: StackPaths, program: Callable[[], None], settings: EngineSettings, command: EngineCommand
) -> LocalWorkspace:
    folder = paths.root / "project"
    folder.mkdir(mode=0o700, exist_ok=True)
    secrets = SecretStore(paths.secrets)
    if not secrets.path(PASSPHRASE).exists() and (sealed := _sealed(stack, paths, folder)):
        raise EngineError(
            f"stack {stack}: {secrets.path(PASSPHRASE)} is gone, and {sealed} is sealed with it; restore that file. If "
            f"it is lost, remove {paths.pulumi} and {folder}, and `letterpress destroy {stack}` ends what still runs"
        )
    secrets.ensure(PASSPHRASE)
    backend = for_engine(settings.backend)
    return LocalWorkspace(
        work_dir=str(folder),
        pulumi_home=str(paths.root / "pulumi-home"),
        program=program,
        secrets_provider="passphrase",
        project_settings=ProjectSettings(PROJECT, "python", main=str(folder), backend=ProjectBackend(backend)),
        pulumi_command=command,
        env_vars={
            MARK: str(paths.root),
            STACK: stack,
            # The provider, in another working directory, must find the very same folders.
            HOME: str(paths.root.parent),
            RUN: str(paths.run.parent),
            "PATH": os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))),
            "PULUMI_BACKEND_URL": backend,
            # By file: an environment is inherited by everything that the engine starts.
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(secrets.path(PASSPHRASE)),
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        },
    )


def _sealed(stack: str, paths: StackPaths, project: Path) -> Path | None:
    """What only the stack's passphrase opens: its state, or the settings that the engine keeps in any case."""
    settings = project / f"Pulumi.{stack}.yaml"
    return next((file for file in (*paths.pulumi.glob(f"**/stacks/**/{stack}.json"), settings) if file.exists()), None)


@contextmanager
def _ending_signals_interrupt() -> Iterator[None]:
    """Being told to end, or losing the terminal, stops an operation as cleanly as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may choose
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
