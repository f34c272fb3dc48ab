"""What has to happen to a unit, what its pid file says, and what its log ends with: no process is started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.hosts import Unit, UnitState
from infra.hosts.launch import boot_id, lock, start_ticks
from infra.hosts.local import Change, environment, needed
from infra.hosts.logs import TAIL_BYTES, last_lines
from infra.hosts.record import Launch, Record, Sighting, look, note_reload

UNIT = Unit("edge", ("nginx", "-g", "daemon off;"), config="one", reload_signal="SIGHUP")
RECORD = Record(1, 2, "boot", UNIT.fingerprint, "one", "SIGTERM", 10.0)


@pytest.mark.parametrize(
    ("seen", "unit", "change"),
    [
        (Sighting(UnitState.STOPPED), UNIT, Change.START),
        (Sighting(UnitState.RUNNING, RECORD), UNIT, Change.NONE),
        (Sighting(UnitState.RUNNING, RECORD), replace(UNIT, config="two"), Change.RELOAD),
        (Sighting(UnitState.RUNNING, RECORD), replace(UNIT, config="two", reload_signal=""), Change.REPLACE),
        (Sighting(UnitState.RUNNING, RECORD), replace(UNIT, argv=("nginx",)), Change.REPLACE),
        (Sighting(UnitState.RUNNING, RECORD), replace(UNIT, argv=("nginx",), config="two"), Change.REPLACE),
        (Sighting(UnitState.ORPHANED, RECORD), UNIT, Change.REPLACE),
    ],
)
def test_a_unit_is_changed_no_more_than_it_has_to_be(seen: Sighting, unit: Unit, change: Change) -> None:
    assert needed(seen, unit) is change


def test_how_a_unit_is_stopped_is_no_reason_to_restart_it() -> None:
    assert replace(UNIT, stop_grace=1.0, stop_signal="SIGINT", reload_signal="").fingerprint == UNIT.fingerprint


def test_a_unit_inherits_where_things_are_and_what_it_names_and_no_more() -> None:
    ours = {
        "PATH": "/bin",
        "https_proxy": "http://p",
        "HF_HOME": "/models",
        "HF_TOKEN": "hf_1",
        "PULUMI_CONFIG_PASSPHRASE": "p",
        "LETTERPRESS_WORKER_PORT": "1",
        "EDITOR": "vi",
    }
    common = {"PATH": "/bin", "https_proxy": "http://p", "HF_HOME": "/models"}
    assert environment(UNIT, ours) == common
    assert environment(replace(UNIT, inherits=("HF_TOKEN", "UNSET")), ours) == common | {"HF_TOKEN": "hf_1"}
    assert environment(replace(UNIT, env={"PATH": "/opt/bin"}), ours) == common | {"PATH": "/opt/bin"}


@pytest.fixture
def pid_file(tmp_path: Path) -> Path:
    """As a launch would have left it, had this process become the unit."""
    path = tmp_path / "edge.json"
    launch = Launch.of(UNIT, tmp_path, tmp_path / "edge.log", path)
    identity = {"pid": 0, "start_ticks": start_ticks("self"), "boot_id": boot_id()}
    path.write_text(json.dumps(identity | launch.record) + "\n")
    return path


def test_a_pid_file_that_nobody_has_locked_is_a_stopped_unit(pid_file: Path) -> None:
    assert look(pid_file).state is UnitState.STOPPED


def test_no_pid_file_is_a_stopped_unit(tmp_path: Path) -> None:
    assert look(tmp_path / "none.json").state is UnitState.STOPPED


def test_the_configuration_in_force_is_the_last_that_was_noted(pid_file: Path) -> None:
    note_reload(pid_file, "two")
    note_reload(pid_file, "three")
    with pid_file.open("r+") as file:
        lock(file.fileno())
        assert look(pid_file).record == Record(
            0, start_ticks("self"), boot_id(), UNIT.fingerprint, "three", "SIGTERM", 10.0
        )


def test_a_note_that_a_full_disk_cut_short_does_not_hide_the_unit(pid_file: Path) -> None:
    note_reload(pid_file, "two")
    with pid_file.open("a") as file:
        file.write('{"conf')
    with pid_file.open("r+") as file:
        lock(file.fileno())
        record = look(pid_file).record
    assert record
    assert record.config == "two"


@given(
    lines=st.lists(st.text(st.characters(exclude_categories=("Cc", "Zl", "Zp", "Cs"))), max_size=30),
    count=st.integers(0, 40),
)
def test_the_last_lines_are_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], count: int
) -> None:
    log = tmp_path_factory.mktemp("log") / "a.log"
    log.write_text("".join(f"{line}\n" for line in lines))
    assert last_lines(log, count) == "\n".join(lines[max(0, len(lines) - count) :])


def test_reading_the_end_of_an_endless_line_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"x" * (TAIL_BYTES * 3))
    assert len(last_lines(log, 5)) == TAIL_BYTES


def test_a_unit_that_never_wrote_has_no_last_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none.log", 5) == ""
