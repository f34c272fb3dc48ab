"""Following a log: every whole line once, whatever its size, also across a rotation."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from infra.hosts.logs import Position, end, whole_lines_since


def follow(log: Path, pieces: list[str]) -> str:
    seen, position = "", end(log)
    for piece in pieces:
        with log.open("a", newline="") as file:
            file.write(piece)
        written, position = whole_lines_since(log, position)
        seen += written
    return seen


@given(st.lists(st.text(alphabet="ab\n", max_size=8), max_size=8))
def test_whole_lines_come_once_and_in_order(tmp_path_factory: object, pieces: list[str]) -> None:
    log = Path(str(tmp_path_factory.mktemp("log"))) / "unit.log"  # type: ignore[attr-defined]
    log.touch()
    text = "".join(pieces)
    assert follow(log, pieces) == text[: text.rfind("\n") + 1]


def test_a_long_log_is_not_told_again_when_a_line_is_added(tmp_path: Path) -> None:
    log = tmp_path / "unit.log"
    log.write_text("x" * 100 + "\n" + "y" * 200_000 + "\n")
    assert follow(log, ["new\n"]) == "new\n"


def test_a_log_that_was_set_aside_begins_anew(tmp_path: Path) -> None:
    log = tmp_path / "unit.log"
    log.write_text("old\n" * 10)
    position = end(log)
    log.rename(tmp_path / "unit.log.1")
    log.write_text("new\n")
    assert whole_lines_since(log, position)[0] == "new\n"


def test_a_log_that_is_not_there_yet_has_nothing(tmp_path: Path) -> None:
    assert whole_lines_since(tmp_path / "unit.log", Position()) == ("", Position())
