"""What a stack's bundle holds, how it is sealed, and whose turn it is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from infra.paths import StackPaths
from infra.state import bundle
from infra.state.bundle import (
    BundleError,
    Held,
    Seal,
    Sealed,
    Standing,
    collect,
    digest,
    restore,
    seal,
    standing,
    unseal,
)

WHO = Seal("fleet", "ada@here", datetime(2026, 11, 24, tzinfo=UTC))
FILES = {"stack-id": b"abcdefgh\n", "secrets/api-key": b"lp_secret"}


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that a bundle may cost."""
    monkeypatch.setattr(bundle, "SCRYPT_N", 2**14)
    monkeypatch.setattr(bundle.Header.model_fields["n"], "default", 2**14)


def sealed(after: str | None = None) -> Sealed:
    header = seal(FILES, "right", after, WHO)
    return Sealed.read(header.model_dump_json())


def test_what_was_sealed_comes_out_with_the_passphrase() -> None:
    assert unseal(sealed(), "right") == FILES


def test_a_wrong_passphrase_opens_nothing_and_names_who_knows_it() -> None:
    with pytest.raises(BundleError, match=r"stack fleet: the passphrase does not open .*ask ada@here"):
        unseal(sealed(), "wrong")


@pytest.mark.parametrize("field", ["stack", "id", "after", "by"])
def test_a_header_that_somebody_changed_opens_nothing(field: str) -> None:
    found = sealed("before")
    forged = found.model_copy(update={"header": found.header.model_copy(update={field: "other"})})
    with pytest.raises(BundleError):
        unseal(forged, "right")


def test_nothing_secret_can_be_read_in_it() -> None:
    assert "lp_secret" not in sealed().model_dump_json()
    assert seal(FILES, "right", None, WHO).content != seal(FILES, "right", None, WHO).content


def test_a_bundle_that_would_cost_without_bound_is_not_opened() -> None:
    text = sealed().model_dump_json().replace('"n":', '"n":99')
    with pytest.raises(BundleError, match="none that this release can read"):
        Sealed.read(text)


@pytest.mark.parametrize(
    "name", ["../../.ssh/authorized_keys", "secrets/../x", "/etc/passwd", "secrets/.x", "router/a"]
)
def test_a_bundle_never_writes_outside_of_what_it_may_hold(name: str) -> None:
    hostile = seal({name: b"x"}, "right", None, WHO)
    with pytest.raises(BundleError, match="no file of a stack"):
        unseal(hostile, "right")


def test_it_holds_every_key_and_the_placement_but_not_its_own_passphrase(tmp_path: Path) -> None:
    ours, theirs = StackPaths(tmp_path / "a", tmp_path), StackPaths(tmp_path / "b", tmp_path)
    (ours.root / "project").mkdir(parents=True)
    ours.secrets.mkdir()
    for name in (
        "stack-id",
        "placement.json",
        "watch-began",
        "secrets/passphrase",
        "secrets/ssh-key",
        "project/Pulumi.fleet.yaml",
    ):
        (ours.root / name).write_text(name)
    for name in ("secrets/bundle-passphrase", "operation.lock", "secrets/.api-key.1.2"):
        (ours.root / name).write_text("stays")
    files = collect(ours)
    assert sorted(files) == [
        "placement.json",
        "project/Pulumi.fleet.yaml",
        "secrets/passphrase",
        "secrets/ssh-key",
        "stack-id",
        "watch-began",
    ]
    restore(files, theirs)
    assert digest(collect(theirs)) == digest(files)
    assert (theirs.secrets / "ssh-key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("ours", "held", "theirs", "found"),
    [
        (None, None, None, Standing.SAME),
        ("d", None, None, Standing.OURS_NEWER),
        (None, None, "1", Standing.THEIRS_NEWER),
        ("d", None, "1", Standing.APART),
        ("d", Held(id="1", digest="d"), "1", Standing.SAME),
        ("e", Held(id="1", digest="d"), "1", Standing.OURS_NEWER),
        ("d", Held(id="1", digest="d"), "2", Standing.THEIRS_NEWER),
        ("e", Held(id="1", digest="d"), "2", Standing.APART),
        ("d", Held(id="1", digest="d"), None, Standing.OURS_NEWER),
    ],
)
def test_whose_turn_it_is(ours: str | None, held: Held | None, theirs: str | None, found: Standing) -> None:
    assert standing(ours, held, theirs) is found


class TwoOperators(RuleBasedStateMachine):
    """Two checkouts and one backend: no change of anybody's is ever lost without a word."""

    @initialize()
    def begin(self) -> None:
        self.backend: tuple[str, frozenset[int]] | None = None
        self.files: list[frozenset[int]] = [frozenset(), frozenset()]
        self.held: list[tuple[str, frozenset[int]] | None] = [None, None]
        self.pushed: set[int] = set()
        self.number = 0

    def standing(self, who: int) -> Standing:
        ours = repr(sorted(self.files[who])) if self.files[who] else None
        known = self.held[who]
        held = Held(id=known[0], digest=repr(sorted(known[1]))) if known else None
        return standing(ours, held, self.backend[0] if self.backend else None)

    @rule(who=st.integers(0, 1))
    def change(self, who: int) -> None:
        self.number += 1
        self.files[who] |= {self.number}

    @rule(who=st.integers(0, 1))
    def catch_up(self, who: int) -> None:
        if self.standing(who) is Standing.THEIRS_NEWER:
            assert self.backend
            self.files[who] = self.backend[1]
            self.held[who] = self.backend

    @rule(who=st.integers(0, 1))
    def push(self, who: int) -> None:
        if self.standing(who) is Standing.OURS_NEWER:
            self.number += 1
            self.backend = self.held[who] = (f"id{self.number}", self.files[who])
            self.pushed |= self.files[who]

    @invariant()
    def nothing_pushed_is_lost(self) -> None:
        assert self.backend is None or self.pushed <= self.backend[1]


TestTwoOperators = TwoOperators.TestCase


def test_which_of_the_users_machines_are_the_stacks_goes_along(tmp_path: Path) -> None:
    paths, there = (StackPaths(tmp_path / name, tmp_path / "run") for name in ("here", "there"))
    record = paths.root / "hosts" / "lp-abcdefgh-h1-g1.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"address": "192.0.2.1"}')
    restore(collect(paths), there)
    assert (there.root / "hosts" / record.name).read_text() == record.read_text()
