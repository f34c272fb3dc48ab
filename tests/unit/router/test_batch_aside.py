"""When a line that nobody could make is asked for again, and when it is given up."""

from __future__ import annotations

import pytest

from router.client.batch import BatchError, Patience
from router.client.batch.aside import IN_A_ROW, Aside, Put
from router.client.batch.errors import NotNowError
from router.client.batch.lines import Line
from router.client.errors import RouterUnavailableError

WHY = NotNowError("pool batch: no worker is registered", 30.0)


def aside(*others_made_at: float) -> tuple[Aside, Put]:
    """A line that was refused first at 100, and others that were made; 90 s, and a patience of 3600."""
    lines = Aside(90, 3600)
    lines.put(Line(1, b"a fox"), 100)
    for at in others_made_at:
        lines.other_made(at)
    put = lines.take()
    assert put is not None
    return lines, put


def test_a_line_is_given_up_after_its_time_where_the_others_go_on() -> None:
    lines, put = aside(150)
    assert [lines.given_up(put, at, WHY, 0) for at in (189, 190)] == [False, True]


def test_a_line_waits_for_as_long_as_patience_goes_where_no_other_was_made_since() -> None:
    lines, put = aside(99)
    assert not lines.given_up(put, 3699, WHY, 0)
    with pytest.raises(BatchError, match="no line could be made for 3600 s; last: line 1: pool batch"):
        lines.given_up(put, 3700, WHY, 0)


def test_what_came_back_for_other_lines_that_waited_gives_nobody_up_while_it_may_come_again() -> None:
    lines, put = aside()
    lines.late_made(1000)
    assert [lines.given_up(put, at, WHY, 0) for at in (1001, 4599, 4600)] == [False, False, True]


def test_patience_does_not_run_out_while_an_image_is_under_way() -> None:
    lines, put = aside()
    assert not lines.given_up(put, 9000, WHY, 1)


def test_a_line_is_asked_for_at_the_moment_when_its_time_is_out_and_after_that_as_the_router_says() -> None:
    lines, put = aside()
    for at, due in ((110, 140), (170, 190), (190, 220)):
        lines.back(put, at, 30)
        again = lines.take()
        assert again is not None
        assert (again.since, again.due) == (100, due)


def test_refusals_hold_nobody_back_until_they_seem_to_meet_every_line() -> None:
    lines = Aside(90, 3600)
    for number in range(1, IN_A_ROW):
        lines.put(Line(number, b""), 0)
    assert lines.pause_s(30) == 0
    lines.put(Line(IN_A_ROW, b""), 0)
    assert lines.pause_s(30) == 30
    lines.other_made(1)
    assert lines.pause_s(30) == 0


async def test_a_refusal_of_one_line_says_that_the_router_is_there() -> None:
    told, now = list[str](), 0.0
    answers = iter([RouterUnavailableError("POST", 503, "restarting", 0.0), WHY])
    patience = Patience(3600, told.append, lambda: now)

    async def refused() -> None:
        raise next(answers)

    with pytest.raises(NotNowError):
        await patience.insist(refused)
    assert told[0]
    assert told[-1] == "", "it does not wait any more"
    now, answers = 4000.0, iter([RouterUnavailableError("POST", 503, "restarting", 0.0), WHY])
    with pytest.raises(NotNowError):
        await patience.insist(refused)
