"""A state that an earlier release wrote can be looked at, taken over and ended by this one.

`tests/releases/*.json` are such states, each kept when its release was made; none is ever written anew:

    python -m tests.integration.infra.test_last_release NAME
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pulumi.automation import Deployment

from infra.engine.events import Action
from infra.provider.resource import Kind
from tests.integration.infra.engine_rig import NAME, Rig, done, new_rig

pytestmark = pytest.mark.engine

RELEASES = Path(__file__).resolve().parents[2] / "releases"
PASSPHRASE = "of a test's stack that is long gone"
STACK_ID = "abcdefgh"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with new_rig(tmp_path) as rig:
        begin(rig)
        yield rig


def begin(rig: Rig) -> None:
    """The stack of every kept state."""
    rig.paths.create()
    (rig.paths.secrets / "passphrase").write_text(PASSPHRASE)
    (rig.paths.root / "stack-id").write_text(f"{STACK_ID}\n")


@pytest.mark.parametrize("release", sorted(RELEASES.glob("*.json")), ids=lambda file: file.stem)
def test_the_state_of_an_earlier_release_is_looked_at_taken_over_and_ended(rig: Rig, release: Path) -> None:
    kept = json.loads(release.read_text())
    names = {each["urn"].rpartition("::")[2] for each in kept["deployment"]["resources"] if Kind.of(each["urn"])}
    settings = rig.paths.root / "project" / f"Pulumi.{NAME}.yaml"
    settings.parent.mkdir(mode=0o700, exist_ok=True)
    settings.write_text(f"encryptionsalt: {kept['deployment']['secrets_providers']['state']['salt']}\n")
    with rig.engine() as engine:
        engine._stack()
        engine._workspace.import_stack(NAME, Deployment(**kept))
    with rig.engine() as engine:
        assert {each.name for each in engine.state().resources} == names
    # Nothing of it runs any more: what is looked for and gone is made again, under the same names.
    assert set(done(rig.preview()).values()) <= {Action.CREATE, Action.UPDATE, Action.REPAIR, Action.REPLACE}
    rig.up()
    assert not rig.preview().changes
    assert set(done(rig.destroy())) >= names
    assert rig.left_over() == []


@pytest.mark.parametrize("release", sorted(RELEASES.glob("*.json")), ids=lambda file: file.stem)
def test_it_is_ended_with_nothing_of_it_left_to_answer(rig: Rig, release: Path) -> None:
    kept = json.loads(release.read_text())
    with rig.engine() as engine:
        engine._stack()
    settings = rig.paths.root / "project" / f"Pulumi.{NAME}.yaml"
    settings.write_text(f"encryptionsalt: {kept['deployment']['secrets_providers']['state']['salt']}\n")
    with rig.engine() as engine:
        engine._workspace.import_stack(NAME, Deployment(**kept))
        assert engine.state().resources
    rig.destroy()
    assert rig.left_over() == []


def keep(release: str) -> None:
    """Write down what this release's state looks like. The ports in it are of that moment."""
    with tempfile.TemporaryDirectory() as folder, new_rig(Path(folder)) as rig:
        begin(rig)
        rig.up()
        with rig.engine() as engine:
            exported = engine._export()
        assert exported
        assert exported.deployment
        for each in exported.deployment["resources"]:
            for of_this_machine in ("sourcePosition", "stackTrace"):
                each.pop(of_this_machine, None)
        content = json.dumps({"version": exported.version, "deployment": exported.deployment}, indent=1)
        for found, stands in (
            (sys.executable, "/usr/bin/python3"),
            (folder, "/home/ada"),
            (str(RELEASES.parents[1]), "/src"),
        ):
            content = content.replace(found, stands)
        file = RELEASES / f"{release}.json"
        if file.exists():
            raise SystemExit(f"{file} is kept already, and stays as it is")
        file.write_text(content + "\n")


if __name__ == "__main__":
    keep(sys.argv[1])
