"""A stack's state and keys as commands have them: where they are, kept up around whatever changes them, moved.

Which backend is `backend`'s word, what a bundle is `bundle`'s, whose turn it is `custody`'s.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from infra.deployment import Deployment, stack_name
from infra.engine import Engine, EngineSettings, operate
from infra.engine.shelf import Shelf
from infra.paths import StackPaths
from infra.setup.engine import ensure_engine
from infra.state import backend
from infra.state.custody import Custody, ask_a_person
from infra.view.console import say


@dataclass(frozen=True, slots=True)
class Safekeeping:
    """`settings` say where the state is; `bundle` is None where nobody else can get at that."""

    paths: StackPaths
    settings: EngineSettings
    bundle: Custody | None

    @classmethod
    def described(cls, deployment: Deployment) -> Safekeeping:
        """As the stack file has it now. Raises BackendError if the state lies elsewhere already."""
        url = backend.wanted(deployment.description.state, os.environ, deployment.paths)
        backend.require(deployment.paths, url)
        return cls.at(deployment.paths, url)

    @classmethod
    def remembered(cls, paths: StackPaths) -> Safekeeping:
        """Of a stack whose file need not be there any more."""
        return cls.at(paths, backend.current(paths))

    @classmethod
    def at(cls, paths: StackPaths, url: str) -> Safekeeping:
        settings = EngineSettings(ensure_engine(say), url)
        return cls(paths, settings, _custody(paths, settings) if backend.shared(url, paths) else None)

    def catch_up(self) -> None:
        """Before anything is planned: take over what another operator changed."""
        if self.bundle:
            self.bundle.catch_up()

    def begin(self) -> None:
        """Before anything is brought about: where the state goes is remembered, and the keys are there already."""
        self.settle()
        self.keep_up()

    def settle(self) -> None:
        """The stack is as described, whoever brought that about: where its state is, is known from now on."""
        backend.remember(self.paths, self.settings.backend)

    def keep_up(self) -> None:
        """After anything that may have changed the keys."""
        if self.bundle:
            self.bundle.keep_up()


def move_state(stack: str) -> None:
    """Bring a stack's state, and the bundle of its keys, to where its file says that they are to be."""
    deployment = Deployment.described(stack)
    paths, name = deployment.paths, deployment.description.name
    before = backend.remembered(paths)
    url = backend.wanted(deployment.description.state, os.environ, paths)
    if before is None or before == url:
        say(f"Nothing to move: the state of stack {name} {'is' if before else 'will be'} in {url}.")
        return
    source, target = Safekeeping.at(paths, before), Safekeeping.at(paths, url)
    source.catch_up()
    with operate(name, paths, (), source.settings, f"state move {name}") as engine:
        engine.copy_to(Engine(name, paths, (), target.settings))
        backend.remember(paths, url)
        engine.discard()
    if source.bundle:
        source.bundle.remove()
    if target.bundle:
        target.bundle.push()
    say(f"The state of stack {name} is in {url} now, and in {before} no more.")


def bundle_of(stack: str) -> Custody:
    """The bundle of a stack that need not be here yet: where its state is, or else is to be."""
    paths = StackPaths.of(stack_name(stack))
    url = backend.remembered(paths) or backend.wanted(Deployment.described(stack).description.state, os.environ, paths)
    return _custody(paths, EngineSettings(ensure_engine(say), url))


def take_over(stack: str, *, replace: bool) -> None:
    """A stack that another operator has deployed: its keys and placement, and where its state is."""
    bundle = bundle_of(stack)
    bundle.pull(replace=replace)
    backend.remember(bundle.paths, bundle.shelf.backend)


def _custody(paths: StackPaths, settings: EngineSettings) -> Custody:
    return Custody(paths, Shelf(paths.root.name, settings.binary, settings.backend), say, ask_a_person)
