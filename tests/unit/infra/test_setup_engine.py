"""Getting the Pulumi engine: which one is taken, and what a machine without any is told.

The programs around it (`pulumi`, `go`) are emulated as what they are: executables on PATH.
"""

from __future__ import annotations

import re
import shutil
import stat
from pathlib import Path

import pytest

from infra.setup import engine
from infra.setup.engine import ENGINE_VERSION, SOURCE, SetupError, compatible, ensure_engine, find_engine

GO_BUILD = """#!/bin/sh
case "$1" in
  env) echo {go_version} ;;
  build)
    while [ "$1" != "-o" ]; do shift; done
    printf 'github.com/pulumi/pulumi/a\\n' >&2
    printf '#!/bin/sh\\necho v{engine_version}\\n' > "$2" && chmod 755 "$2" ;;
esac
"""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def saying(version: str) -> str:
    return f"#!/bin/sh\necho {version}\n"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing: no network, an empty cache, and a PATH of one folder, which is returned."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "chmod").symlink_to(shutil.which("chmod") or "/bin/chmod")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.delenv("LETTERPRESS_PULUMI", raising=False)
    return binaries


@pytest.mark.parametrize(
    ("found", "wanted", "serves"),
    [
        ("v3.258.0", "3.258.0", True),
        ("v3.260.1", "3.258.0", True),
        ("v3.258.0-dev.0", "3.258.0", True),
        ("v3.257.9", "3.258.0", False),
        ("v4.0.0", "3.258.0", False),
        ("command not found", "3.258.0", False),
    ],
)
def test_an_engine_serves_a_package_of_the_same_major_that_is_not_newer(found: str, wanted: str, serves: bool) -> None:
    assert compatible(found, wanted) is serves


def test_the_source_module_builds_the_version_of_the_python_package() -> None:
    required = re.findall(r"github.com/pulumi/pulumi/(?:pkg|sdk)/v3 v(\S+)", (SOURCE / "go.mod").read_text())
    assert required == [ENGINE_VERSION, ENGINE_VERSION]


def test_a_compatible_engine_on_path_is_taken(bare: Path) -> None:
    ours = program(bare / "pulumi", saying(f"v{ENGINE_VERSION}"))
    assert find_engine() == ours


def test_an_engine_that_is_too_old_is_passed_over(bare: Path) -> None:
    program(bare / "pulumi", saying("v3.1.0"))
    assert find_engine() is None


def test_a_cached_file_that_does_not_run_is_passed_over(bare: Path) -> None:
    engine._cached().parent.mkdir(parents=True)
    engine._cached().write_text("half a download")
    assert find_engine() is None


def test_without_the_release_the_engine_is_built_with_go_and_kept(bare: Path) -> None:
    program(bare / "go", GO_BUILD.format(go_version="go1.26.1", engine_version=ENGINE_VERSION))
    said: list[str] = []

    built = ensure_engine(said.append)

    assert built == engine._cached()
    assert find_engine() == built
    assert any("the official release" in line for line in said)
    assert list(built.parent.iterdir()) == [built]


def test_a_build_that_says_another_version_is_not_believed(bare: Path) -> None:
    program(bare / "go", GO_BUILD.format(go_version="go1.26.1", engine_version="3.0.0"))
    with pytest.raises(SetupError, match="does not say that it is"):
        ensure_engine(lambda _: None)


@pytest.mark.parametrize(
    ("go", "reason"),
    [
        (None, "needs Go, which is not on PATH"),
        (GO_BUILD.format(go_version="go1.19.8", engine_version=ENGINE_VERSION), "go1.19.8"),
        ("#!/bin/sh\n[ $1 = env ] && echo go1.26.0 || { echo 'disk full' >&2; exit 1; }\n", "disk full"),
    ],
)
def test_a_machine_that_cannot_have_the_engine_is_told_each_reason_and_what_to_do(
    bare: Path, go: str | None, reason: str
) -> None:
    if go:
        program(bare / "go", go)
    with pytest.raises(SetupError) as caught:
        ensure_engine(lambda _: None)
    message = str(caught.value)
    assert "Connection refused" in message
    assert reason in message
    assert "LETTERPRESS_PULUMI" in message
