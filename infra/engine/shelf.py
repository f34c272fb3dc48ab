"""A text kept in a stack's backend, beside its state: the sealed bundle of its keys.

Whatever backend the engine takes, this goes there by the same way and the same credentials: as the one output of a
second Pulumi stack, `NAME-bundle`, that has no other resource. Nothing in it is sealed with a passphrase of the
engine's, so a checkout that has no key yet can read it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pulumi.automation import Deployment, LocalWorkspace, ProjectBackend, ProjectSettings
from pulumi.automation.errors import CommandError, StackNotFoundError

from infra.engine.command import EngineCommand
from infra.engine.events import last_words
from infra.errors import InfraError
from infra.state.backend import for_engine

PROJECT = "letterpress"
SUFFIX = "-bundle"
OUTPUT = "bundle"
NOTHING_SEALED = "the bundle is sealed by itself"
"""What the engine takes for a passphrase here: it wants one, and has nothing to seal with it."""
STACK_TYPE = "pulumi:pulumi:Stack"


class ShelfError(InfraError):
    """The backend did not give or take the text; the message has the engine's last words."""


class Shelf:
    """One stack's place for its bundle in `backend`."""

    def __init__(self, stack: str, binary: Path, backend: str) -> None:
        self._stack, self._binary, self.backend = stack, binary, backend
        self._address = for_engine(backend)

    def read(self) -> str | None:
        """The text; None if there is none."""
        with self._workspace() as workspace:
            try:
                whole = workspace.export_stack(self._name)
            except StackNotFoundError:
                return None
        resources = (whole.deployment or {}).get("resources") or []
        return next((found.get("outputs", {}).get(OUTPUT) for found in resources if found["type"] == STACK_TYPE), None)

    def write(self, text: str) -> None:
        """Put the text there, in the place of what was."""
        with self._workspace() as workspace:
            try:
                whole = workspace.export_stack(self._name)
            except StackNotFoundError:
                workspace.create_stack(self._name)
                whole = workspace.export_stack(self._name)
            urn = f"urn:pulumi:{self._name}::{PROJECT}::{STACK_TYPE}::{PROJECT}-{self._name}"
            holder = {"urn": urn, "custom": False, "type": STACK_TYPE, "outputs": {OUTPUT: text}}
            changed = {**(whole.deployment or {}), "resources": [holder]}
            workspace.import_stack(self._name, Deployment(version=whole.version, deployment=changed))

    def remove(self) -> None:
        """Nothing of it is left; none was there is success."""
        with self._workspace() as workspace:
            try:
                workspace.export_stack(self._name)
            except StackNotFoundError:
                return
            workspace.remove_stack(self._name, force=True)

    @property
    def _name(self) -> str:
        return f"{self._stack}{SUFFIX}"

    @contextmanager
    def _workspace(self) -> Iterator[LocalWorkspace]:
        """In a folder that goes again: the engine leaves its settings in there."""
        with TemporaryDirectory(prefix="letterpress-") as folder:
            workspace = LocalWorkspace(
                work_dir=folder,
                pulumi_home=folder,
                secrets_provider="passphrase",
                project_settings=ProjectSettings(PROJECT, "python", backend=ProjectBackend(self._address)),
                pulumi_command=EngineCommand(self._binary),
                env_vars={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "PULUMI_BACKEND_URL": self._address,
                    "PULUMI_CONFIG_PASSPHRASE": NOTHING_SEALED,
                    "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
                    "PULUMI_SKIP_UPDATE_CHECK": "true",
                },
            )
            try:
                yield workspace
            except CommandError as error:
                place = self.backend.removeprefix("file://").partition("?")[0]
                if self.backend.startswith("file://") and not Path(place).is_dir():
                    raise ShelfError(
                        f"stack {self._stack}: its state should be in {place}, and there is no such folder. Make it, "
                        "or mount it; `state` in the stack file names it, or LETTERPRESS_STATE"
                    ) from None
                raise ShelfError(f"stack {self._stack}: {self.backend}: {last_words(str(error))}") from error
