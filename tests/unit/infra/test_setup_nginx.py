"""Getting nginx: found where packages put it, installed where that is allowed, a clear line where not.

`apt-get`, `sudo` and nginx are emulated as what they are: executables on PATH.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from infra.edge import nginx as nginx_program
from infra.setup import apt
from infra.setup.engine import SetupError
from infra.setup.nginx import ensure_nginx

APT_GET = """#!/bin/sh
echo "$*" >> {log}
[ "$1" = install ] && {install}
exit {code}
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without nginx; the folder that is its PATH."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for tool in ("env", "sh", "rm", "cp", "chmod"):
        (binaries / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setattr(nginx_program, "FOLDERS", ())
    monkeypatch.setattr(apt, "POLICY", tmp_path / "policy-rc.d")
    return binaries


def test_nginx_that_is_there_is_taken_and_nothing_is_installed(bare: Path) -> None:
    here = program(bare / "nginx", "#!/bin/sh\n")
    said: list[str] = []
    assert ensure_nginx(said.append) == here
    assert said == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages without sudo")
def test_root_installs_it_and_no_service_of_the_package_starts(bare: Path, tmp_path: Path) -> None:
    log = tmp_path / "apt.log"
    install = f"{{ sh {tmp_path / 'policy-rc.d'}; echo policy $? >> {log}; cp {bare / 'env'} {bare / 'nginx'}; }}"
    program(bare / "apt-get", APT_GET.format(log=log, install=install, code=0))

    assert ensure_nginx(lambda _: None) == bare / "nginx"

    asked = log.read_text().splitlines()
    assert asked[0].startswith("update")
    assert "nginx-light" in asked[1]
    assert asked[2] == "policy 101"
    assert not (tmp_path / "policy-rc.d").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages without sudo")
def test_a_failed_installation_is_told_in_apts_own_words(bare: Path, tmp_path: Path) -> None:
    program(bare / "apt-get", "#!/bin/sh\necho 'E: no space left on device' >&2\nexit 100\n")
    with pytest.raises(SetupError, match="no space left on device"):
        ensure_nginx(lambda _: None)
    assert not (tmp_path / "policy-rc.d").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages without sudo")
def test_a_policy_that_the_machine_has_is_left_as_it_is(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "policy-rc.d").write_text("the machine's own")
    program(
        bare / "apt-get", APT_GET.format(log=tmp_path / "log", install=f"cp {bare / 'env'} {bare / 'nginx'}", code=0)
    )
    ensure_nginx(lambda _: None)
    assert (tmp_path / "policy-rc.d").read_text() == "the machine's own"


def test_without_apt_the_user_is_told_what_to_install(bare: Path) -> None:
    with pytest.raises(SetupError, match=r"no apt-get.*install nginx"):
        ensure_nginx(lambda _: None)


def test_who_may_not_install_is_told_the_command(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "apt-get", "#!/bin/sh\nexit 1\n")
    program(bare / "sudo", "#!/bin/sh\necho 'a password is required' >&2\nexit 1\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SetupError, match="sudo apt-get install nginx"):
        ensure_nginx(lambda _: None)
