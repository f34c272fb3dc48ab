"""What `deploy` and `sweep` ask a person at a terminal, and what comes of the answers: what is rented, by the bill."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from infra.emulate.server import Answer, Request, serving
from infra.emulate.spheron import SpheronApi
from infra.paths import repository_root
from tests.integration.infra.hired import Person

pytestmark = pytest.mark.engine

ENDS_WITHIN_S = 120.0


@dataclass
class Terminal:
    """A command at a terminal of its own; `said` is what it has written there so far."""

    process: subprocess.Popen[bytes]
    screen: int
    said: str = ""
    heard: int = 0

    def until(self, words: str) -> None:
        """Read until it has said so, after what was waited for before. AssertionError if it ends first."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while not (found := re.compile(words).search(self.said, self.heard)):
            assert self._read(deadline), f"it never said {words!r}:\n{self.said}"
        self.heard = found.end()

    def types(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def ends(self) -> int:
        """Read to its end; the exit status."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while self._read(deadline):
            pass
        return self.process.wait(ENDS_WITHIN_S)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.screen], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"it says nothing any more:\n{self.said}"
        try:
            more = os.read(self.screen, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            return False
        self.said += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", more)
        return bool(more)


@dataclass(slots=True)
class Moving(SpheronApi):
    """Where everything costs `times` as much from its n-th look on, n being `moves_at`."""

    times: float = 1.0
    moves_at: int = 1
    looks: int = 0

    def answer(self, request: Request, operation: str, /) -> Answer:
        if operation == "listOffers" and request.query["page"] == "1":
            self.looks += 1
            if self.looks == self.moves_at:
                self.stock = [
                    replace(each, price=self.times * each.price, spot_price=self.times * (each.spot_price or 0.0))
                    for each in self.stock
                ]
        return SpheronApi.answer(self, request, operation)


@dataclass
class Seated(Person):
    """At a terminal."""

    @property
    def api(self) -> Moving:
        assert isinstance(self.emulator.api, Moving)
        return self.emulator.api

    @contextmanager
    def at_a_terminal(self, verb: str) -> Iterator[Terminal]:
        screen, keyboard = pty.openpty()
        with subprocess.Popen(
            self.words(verb),
            env={**self.environment, "TERM": "xterm", "COLUMNS": "200"},
            cwd=repository_root(),
            stdin=keyboard,
            stdout=keyboard,
            stderr=keyboard,
            start_new_session=True,
        ) as process:
            os.close(keyboard)
            try:
                yield Terminal(process, screen)
            finally:
                process.kill()
                os.close(screen)


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Seated]:
    with serving(Moving()) as emulator:
        made = Seated(tmp_path, emulator)
        made.describes("machines: 0, gpus: [H100-PCIe]", "machines: 1, market: spot, gpus: [A100-SXM-80GB]")
        try:
            yield made
        finally:
            made.letterpress("destroy")


def test_a_no_rents_nothing_and_so_does_the_end_of_the_input(person: Seated) -> None:
    for keys in ("n\n", "\x04"):
        with person.at_a_terminal("deploy") as terminal:
            terminal.until(r"Together \$0\.82 an hour, of which \$0\.82 are new\.")
            terminal.until(r"Rent them\? \(y/N\)")
            terminal.types(keys)
            assert terminal.ends() == 1
            assert "Nothing was rented" in terminal.said
    assert person.emulator.account.rentals == {}
    assert "createDeployment" not in person.emulator.asked


def test_a_price_that_rises_while_the_question_is_open_is_asked_about_again(person: Seated) -> None:
    with person.at_a_terminal("deploy") as terminal:
        terminal.until(r"Together \$0\.82 an hour")
        terminal.until(r"Rent them\?")
        person.api.times, person.api.moves_at = 2.0, person.api.looks + 1
        terminal.types("y\n")
        terminal.until(r"batch-1: A100-SXM-80GB \(spot\) costs \$1\.64/h, and not \$0\.82")
        terminal.until(r"Together \$1\.64 an hour")
        terminal.until(r"Rent them\?")
        terminal.types("n\n")
        assert terminal.ends() == 1
    assert person.emulator.account.rentals == {}


def test_a_yes_beforehand_covers_no_price_that_has_risen_beyond_the_budget(person: Seated) -> None:
    shown = person.letterpress("preview")
    assert "Together $0.82 an hour" in shown.stdout, shown.stderr
    person.api.times, person.api.moves_at = 8.0, person.api.looks + 2
    refused = person.letterpress("deploy", "--yes")
    assert refused.returncode == 1
    assert "Together $0.82 an hour" in refused.stdout
    assert "would cost $6.56 an hour, and `budget_per_hour` is $5.00" in " ".join(refused.stderr.split())
    assert person.emulator.account.rentals == {}


def test_while_a_sweep_asks_the_stack_is_free_and_what_changed_meanwhile_is_left_alone(person: Seated) -> None:
    person.letterpress("deploy")
    home = person.folder / "home/hired"
    stack_id = (home / "stack-id").read_text().strip()
    account = person.emulator.account
    ended, stays, adopted = (
        account.rent(f"lp-{stack_id}-batch-{number}-g1", 0.82, ("ssh-ed25519 AAAA x",)) for number in (7, 8, 1)
    )
    with person.at_a_terminal("sweep") as terminal:
        terminal.until(r"Delete them\? \(y/N\)")
        deployed = person.letterpress("deploy", "--yes")
        assert "sweep hired" not in deployed.stderr, "nobody holds the stack while a person thinks"
        assert "createDeployment" not in person.emulator.asked, "the deploy takes up the machine that is there"
        account.end(ended)
        again = account.rent(ended.name, 0.82, ())
        late = account.rent(f"lp-{stack_id}-batch-9-g1", 0.82, ())
        terminal.types("y\n")
        assert terminal.ends() == 0, terminal.said
    assert {rental.id for rental in account.alive()} == {adopted.id, again.id, late.id}
    assert stays.ended is not None
    assert f"{adopted.name}  (spheron" in terminal.said
    assert "left alone: it is no stray any more" in terminal.said


def test_a_sweep_deletes_what_it_has_shown_after_a_yes_and_nothing_after_a_no(person: Seated) -> None:
    person.letterpress("deploy")  # refused: it draws the stack's id, and no more
    account, strays = person.emulator.account, [f"lp-{person.stack_id}-batch-{number}-g1" for number in (7, 8)]
    for name in [*strays, "lp-zzzzzzzz-batch-1-g1"]:
        account.rent(name, 0.82, ())
    for keys, status, left in (("n\n", 0, 3), ("\x04", 0, 3), ("y\n", 0, 1)):
        with person.at_a_terminal("sweep") as terminal:
            terminal.until(rf"{strays[1]}  \(spheron, \$0\.82/h")
            terminal.until(r"Delete them\? \(y/N\)")
            assert len(account.alive()) == 3
            terminal.types(keys)
            assert terminal.ends() == status, terminal.said
        assert len(account.alive()) == left
    assert [rental.name for rental in account.alive()] == ["lp-zzzzzzzz-batch-1-g1"], "another stack's"
