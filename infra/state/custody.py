"""Whose keys a stack's are now: this checkout's files and the bundle in the backend, kept the same around a deploy.

Before a stack is planned, a newer bundle is taken over; before anything is brought about with new keys, they are in
the backend. Two that changed the same bundle are told apart by the ids that each was made from, and the second one is
refused before it changes anything.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from infra.engine.shelf import Shelf
from infra.files import create_once, replace_file
from infra.paths import StackPaths
from infra.state.bundle import (
    PASSPHRASE_NAME,
    BundleError,
    Held,
    Seal,
    Sealed,
    Standing,
    collect,
    digest,
    pins_in,
    restore,
    seal,
    standing,
    unseal,
)

PASSPHRASE = "LETTERPRESS_BUNDLE_PASSPHRASE"  # noqa: S105 - the name of a variable

Say = Callable[[str], None]
Ask = Callable[[], str]
"""Asks a person for the passphrase."""


def ask_a_person() -> str:
    """At a terminal; elsewhere BundleError says how it can be given."""
    if not sys.stdin.isatty():
        raise BundleError(f"the bundle wants its passphrase: give it as {PASSPHRASE}, or do this at a terminal")
    return getpass.getpass("Passphrase of the bundle: ").strip()


@dataclass(frozen=True, slots=True)
class Custody:
    """One stack's bundle. `shelf` is its place in the backend; `ask` is for when nothing else knows the passphrase."""

    paths: StackPaths
    shelf: Shelf
    say: Say
    ask: Ask

    def pull(self, *, replace: bool = False) -> None:
        """Take the backend's bundle over. Raises BundleError if there is none, or if ours has changed besides;
        with `replace`, theirs counts then, and ours is set aside."""
        theirs = self._theirs()
        if theirs is None:
            raise BundleError(
                f"stack {self._stack}: there is no bundle in its backend; `letterpress bundle push` there"
            )
        match self._standing(theirs):
            case Standing.SAME | Standing.OURS_NEWER:
                self.say(f"Nothing to pull: the keys of stack {self._stack} are here already.")
            case Standing.APART if not replace:
                raise self._apart(theirs)
            case Standing.APART | Standing.THEIRS_NEWER:
                self._take(theirs)

    def push(self) -> None:
        """Put ours into the backend. Raises BundleError if somebody else's there is not the one that we know."""
        if not self._push():
            self.say(f"Nothing to push: the bundle of stack {self._stack} is as it is here.")

    def catch_up(self) -> None:
        """Before a stack is planned: take over what another operator changed."""
        theirs = self._theirs()
        if theirs is None:
            return
        match self._standing(theirs):
            case Standing.THEIRS_NEWER:
                self._take(theirs)
            case Standing.APART:
                raise self._apart(theirs)
            case Standing.SAME | Standing.OURS_NEWER:
                pass

    def keep_up(self) -> None:
        """Whenever keys or placement may have changed: so that nothing runs whose keys only this checkout has."""
        held, ours = self._held(), collect(self.paths)
        if held is None or held.digest != digest(ours):
            self._push()
        elif held.pins != pins_in(ours):
            theirs = self._theirs()
            if theirs is None or theirs.header.id == held.id:  # or they are kept here when theirs is taken over
                self._push()

    def remove(self) -> None:
        self.shelf.remove()
        self._note.unlink(missing_ok=True)

    @property
    def _stack(self) -> str:
        return self.paths.root.name

    @property
    def _note(self) -> Path:
        return self.paths.root / "bundle.json"

    def _held(self) -> Held | None:
        try:
            return Held.model_validate_json(self._note.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _theirs(self) -> Sealed | None:
        text = self.shelf.read()
        return Sealed.read(text) if text else None

    def _standing(self, theirs: Sealed | None) -> Standing:
        # A stack without the engine's passphrase was never deployed from here: what else lies there is no key.
        known = (self.paths.secrets / "passphrase").exists()
        ours = digest(collect(self.paths)) if known else None
        return standing(ours, self._held(), theirs.header.id if theirs else None)

    def _take(self, theirs: Sealed) -> None:
        passphrase = self._known_passphrase() or self.ask()
        files = unseal(theirs, passphrase)
        self.paths.create()
        self._set_aside()
        restore(files, self.paths)
        replace_file(self.paths.secrets / PASSPHRASE_NAME, f"{passphrase}\n".encode())
        self._remember(theirs, pins_in(files))
        header = theirs.header
        self.say(f"Took over the keys of stack {self._stack} from {header.by}, {header.at:%Y-%m-%d %H:%M:%S} UTC.")

    def _set_aside(self) -> None:
        """What a bundle is about to replace."""
        for name, content in collect(self.paths).items():
            kept = self.paths.root / "before-pull" / name
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(kept, content)

    def _push(self) -> bool:
        ours = collect(self.paths)
        held = self._held()
        theirs = self._theirs()
        same = held is not None and (held.digest, held.pins) == (digest(ours), pins_in(ours))
        if theirs and held and theirs.header.id == held.id and same:
            return False
        if theirs and (held is None or held.id != theirs.header.id):
            raise self._apart(theirs)
        first = self._known_passphrase() is None
        passphrase = self._passphrase()
        who = Seal(self._stack, f"{getpass.getuser()}@{socket.gethostname()}", datetime.now(UTC).replace(microsecond=0))
        sealed = seal(ours, passphrase, theirs.header.id if theirs else None, who)
        self.shelf.write(sealed.model_dump_json())
        now = self._theirs()
        if now is None or now.header.id != sealed.header.id:
            raise self._apart(now or sealed)
        self._remember(sealed, pins_in(ours))
        if first:
            self.say(
                f"The keys of stack {self._stack} are in its backend, sealed. Whoever is to take it over needs the "
                f"passphrase in {self.paths.secrets / PASSPHRASE_NAME}; hand it over yourself."
            )
        return True

    def _remember(self, sealed: Sealed, pins: str) -> None:
        """`pins` are the bundle's: what is pinned here besides is still to be told."""
        note = Held(id=sealed.header.id, digest=digest(collect(self.paths)) or "", pins=pins)
        replace_file(self._note, note.model_dump_json().encode() + b"\n")

    def _known_passphrase(self) -> str | None:
        if given := os.environ.get(PASSPHRASE):
            return given
        try:
            return (self.paths.secrets / PASSPHRASE_NAME).read_text().strip()
        except FileNotFoundError:
            return None

    def _passphrase(self) -> str:
        if known := self._known_passphrase():
            return known
        create_once(self.paths.secrets / PASSPHRASE_NAME, secrets.token_urlsafe(24).encode())
        return (self.paths.secrets / PASSPHRASE_NAME).read_text().strip()

    def _apart(self, theirs: Sealed) -> BundleError:
        header = theirs.header
        return BundleError(
            f"stack {self._stack}: {header.by} changed its keys or its placement at {header.at:%Y-%m-%d %H:%M:%S} UTC, "
            f"and so did this checkout, since the two were the same. Nothing was changed. `letterpress bundle pull "
            f"{self._stack} --replace` goes on from theirs (ours is set aside in {self.paths.root / 'before-pull'}); "
            "if it is another stack of the same name, name yours otherwise"
        )
