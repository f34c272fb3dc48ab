"""Which fronts are dead, by what was seen of them and no clock."""

from __future__ import annotations

from router.fronts import Silences


def test_a_front_is_dead_when_its_beats_stayed_the_same_in_so_many_looks_after_the_first() -> None:
    silences = Silences(3)
    looks = [silences.look({"silent": 7, "alive": beats}) for beats in range(4)]
    assert looks == [[], [], [], ["silent"]]


def test_a_beat_starts_the_count_anew_whatever_it_says() -> None:
    silences = Silences(2)
    assert [silences.look({"a": beats}) for beats in (5, 5, 1, 1)] == [[], [], [], []]
    assert silences.look({"a": 1}) == ["a"]


def test_a_look_that_failed_starts_every_count_anew() -> None:
    silences = Silences(2)
    silences.look({"a": 1})
    silences.look({"a": 1})
    silences.anew()
    assert [silences.look({"a": 1}) for _ in range(3)] == [[], [], ["a"]]


def test_a_front_that_was_away_between_is_a_new_one() -> None:
    silences = Silences(1)
    silences.look({"a": 1})
    silences.look({})
    assert silences.look({"a": 1}) == []
