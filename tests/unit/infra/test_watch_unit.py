"""Watch's unit file, as text and before systemd's own checker."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra.setup.for_tests import find_systemd_analyze
from infra.watch.unit import Manager, UnitError, environment_file, unit_text, variables


def text(folder: Path, target: str = "multi-user.target") -> str:
    folders = {"LETTERPRESS_HOME": "/srv/a folder", "LETTERPRESS_RUN": "/run/lp"}
    return unit_text("mine", ("/bin/true", "100 %"), folders, folder / "50% watch.env", target)


@pytest.mark.parametrize("uid", [0, 1000])
def test_systemd_takes_the_unit(tmp_path: Path, uid: int) -> None:
    checker = find_systemd_analyze()
    if checker is None:
        pytest.skip("systemd-analyze is not installed (make setup-test installs it where it may)")
    file = tmp_path / "letterpress-watch-mine.service"
    file.write_text(text(tmp_path, Manager.of(uid, tmp_path).target))
    whose = ["--user"] if uid else []
    done = subprocess.run([str(checker), "verify", *whose, str(file)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if str(file) in line or file.name in line]
    assert complaints == [], done.stderr


def test_no_account_stands_in_it_and_what_it_starts_outlives_it(tmp_path: Path) -> None:
    said = text(tmp_path)
    assert 'ExecStart=/bin/true "100 %%" watch mine' in said
    assert f"EnvironmentFile={tmp_path}/50%% watch.env" in said
    assert "KillMode=process" in said
    assert "KEY" not in said


def test_it_takes_over_the_accounts_and_what_the_file_refers_to_and_nothing_else() -> None:
    environ = {
        "SPHERON_API_KEY": 's3cr3t "quoted" $x',
        "MY_PASSWORD": "p",
        "LETTERPRESS_HOME": "/elsewhere",
        "EDITOR": "vi",
        "HF_TOKEN": "",
    }
    taken = variables('{"password": "${MY_PASSWORD}"}', environ)
    assert set(taken) == {"SPHERON_API_KEY", "MY_PASSWORD"}
    assert environment_file(taken) == b'MY_PASSWORD="p"\nSPHERON_API_KEY="s3cr3t \\"quoted\\" $x"\n'


def test_a_value_of_several_lines_is_refused_by_name() -> None:
    with pytest.raises(UnitError, match="AWS_SECRET"):
        variables("", {"AWS_SECRET": "a\nb"})
