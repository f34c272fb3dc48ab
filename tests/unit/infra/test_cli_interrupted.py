"""Ctrl-C before a command has begun."""

from __future__ import annotations

from typing import NoReturn

import pytest

from infra import cli


class Loading:
    """An entry point whose package is still being read when Ctrl-C comes."""

    name = "weights"

    def load(self) -> NoReturn:
        raise KeyboardInterrupt

    def __lt__(self, other: object) -> bool:
        return False


def test_a_ctrl_c_while_it_still_loads_ends_it_as_shells_have_it_and_without_a_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda *, group: [Loading()])  # noqa: ARG005 - by its name
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
