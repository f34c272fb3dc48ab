"""A stack whose state is elsewhere: in a bucket, under the real Pulumi engine, and taken over from another checkout."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.engine import Engine, EngineSettings, operate
from infra.engine.guard import BusyError
from infra.engine.shelf import Shelf, ShelfError
from infra.paths import StackPaths
from infra.ssh.pins import Pins
from infra.state.backend import own
from infra.state.bundle import BundleError, Sealed
from infra.state.custody import PASSPHRASE, Custody
from tests.emulators.s3 import EmulatedS3, emulated_s3
from tests.integration.infra.engine_rig import NAME, Rig, done, new_rig, pulumi_engine

pytestmark = pytest.mark.engine


@contextmanager
def served_s3() -> Iterator[EmulatedS3]:
    """The emulated bucket, in a loop of its own thread: the engine is driven without one."""
    started: list[EmulatedS3] = []
    ready, end = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with emulated_s3() as service:
            service.bucket = "state"
            started.append(service)
            ready.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(30)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[EmulatedS3]:
    with served_s3() as service, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", service.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", service.secret_key)
        yield service


@pytest.fixture
def url(bucket: EmulatedS3) -> Iterator[str]:
    yield f"s3://state/team?region=eu-central-1&endpoint={bucket.endpoint}&use_path_style=true"
    bucket.objects.clear()


@pytest.fixture
def rig(tmp_path: Path, url: str) -> Iterator[Rig]:
    """A stack whose state goes into the bucket."""
    with new_rig(tmp_path) as rig:
        rig.backend = url
        yield rig


def custody(paths: StackPaths, url: str, said: list[str]) -> Custody:
    def nobody() -> str:
        raise AssertionError("nobody is there to be asked")

    return Custody(paths, Shelf(NAME, pulumi_engine(), url), said.append, nobody)


def test_a_stack_lives_and_ends_with_its_state_in_a_bucket(rig: Rig, bucket: EmulatedS3) -> None:
    made = done(rig.up())
    kept = json.loads(bucket.objects[f"team/.pulumi/stacks/letterpress/{NAME}.json"][0])
    names = {each["urn"].rpartition("::")[2] for each in kept["checkpoint"]["latest"]["resources"]}
    assert set(made) <= names
    assert not any(rig.paths.pulumi.rglob("*.json")), "nothing of the state lies in the stack's folder"
    everything = [content for content, _ in bucket.objects.values()]
    everything += [file.read_bytes() for file in rig.paths.root.rglob("*") if file.is_file()]
    assert not [found for found in everything if bucket.secret_key.encode() in found]
    assert set(done(rig.destroy())) == set(made)
    assert not [key for key in bucket.objects if key.endswith((f"/{NAME}.json", "locks"))]
    assert rig.left_over() == []


def test_locks_in_a_bucket_are_judged_as_those_in_a_folder_are(rig: Rig, bucket: EmulatedS3) -> None:
    rig.preview()
    leave_lock(bucket, "elsewhere", 4711)
    with pytest.raises(BusyError, match=r"locked by ada@elsewhere \(process 4711\).*on another machine"):
        rig.up()
    bucket.objects = {key: kept for key, kept in bucket.objects.items() if "/locks/" not in key}
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    leave_lock(bucket, socket.gethostname(), process.pid)
    assert rig.up().changes
    assert not [key for key in bucket.objects if "/locks/" in key]


def leave_lock(bucket: EmulatedS3, host: str, pid: int) -> None:
    held = {"pid": pid, "username": "ada", "hostname": host, "timestamp": datetime.now(UTC).isoformat()}
    key = f"team/.pulumi/locks/organization/letterpress/{NAME}/0c6be4a5-6b0c-4b0e-8f0c-000000000001.json"
    bucket.objects[key] = json.dumps(held).encode(), "application/json"


def test_a_second_operator_takes_the_stack_over_from_another_checkout(rig: Rig, url: str, tmp_path: Path) -> None:
    said: list[str] = []
    first = custody(rig.paths, url, said)
    rig.up()
    first.keep_up()
    assert "hand it over yourself" in said[-1]
    passphrase = (rig.paths.secrets / "bundle-passphrase").read_text()

    elsewhere = StackPaths(tmp_path / "their-home" / NAME, rig.paths.run)
    second = custody(elsewhere, url, said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PASSPHRASE, passphrase)
        second.catch_up()
    assert (elsewhere.secrets / "api-key").read_text() == (rig.paths.secrets / "api-key").read_text()
    with operate(NAME, elsewhere, (), rig.settings, "status") as engine:
        assert {each.name for each in engine.state().resources} >= {"router", "interactive-1", "batch-1"}
        assert engine.preview(lambda _: None).changes, "the engine opens the state with the keys that were taken over"

    # The second one changes something; the first one hears of it before it changes anything itself.
    (elsewhere.secrets / "worker-token-interactive-1").write_text("drawn anew")
    second.keep_up()
    first.catch_up()
    assert (rig.paths.secrets / "worker-token-interactive-1").read_text() == "drawn anew"
    (elsewhere.secrets / "worker-token-interactive-1").write_text("another")
    (rig.paths.secrets / "worker-token-interactive-1").write_text("a third")
    second.keep_up()
    with pytest.raises(BundleError, match=r"changed its keys or its placement .*--replace"):
        first.keep_up()
    with pytest.raises(BundleError, match="and so did this checkout"):
        first.catch_up()
    first.pull(replace=True)
    assert (rig.paths.secrets / "worker-token-interactive-1").read_text() == "another"
    assert (rig.paths.root / "before-pull/secrets/worker-token-interactive-1").read_text() == "a third"


def test_a_host_key_that_both_have_pinned_sets_nobody_apart(rig: Rig, url: str, tmp_path: Path) -> None:
    """A watch that has replaced a machine, and a deploy that has looked at it."""
    said: list[str] = []
    first = custody(rig.paths, url, said)
    rig.paths.create()
    for name in ("passphrase", "worker-token-interactive-1"):  # as after a deploy
        (rig.paths.secrets / name).write_text(name)
    first.keep_up()
    elsewhere = StackPaths(tmp_path / "their-home" / NAME, rig.paths.run)
    second = custody(elsewhere, url, said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PASSPHRASE, (rig.paths.secrets / "bundle-passphrase").read_text())
        second.catch_up()
    ours, theirs = Pins(rig.paths.known_hosts), Pins(elsewhere.known_hosts)
    for pins in (ours, theirs):
        pins.pin("m-2", "ssh-ed25519 AAAA2")
    ours.pin("m-3", "ssh-ed25519 AAAA3")
    theirs.pin("m-4", "ssh-ed25519 AAAA4")
    second.keep_up()
    first.catch_up()
    assert [ours.get(name) for name in ("m-2", "m-3", "m-4")] == [f"ssh-ed25519 AAAA{n}" for n in (2, 3, 4)]
    first.keep_up()
    second.catch_up()
    assert theirs.get("m-3") == "ssh-ed25519 AAAA3"
    (elsewhere.secrets / "worker-token-interactive-1").write_text("drawn anew")
    second.keep_up()
    ours.pin("m-5", "ssh-ed25519 AAAA5")
    first.keep_up()
    first.catch_up()
    assert (rig.paths.secrets / "worker-token-interactive-1").read_text() == "drawn anew"
    assert ours.get("m-5") == "ssh-ed25519 AAAA5"


def test_the_bundle_in_the_backend_shows_no_secret(rig: Rig, url: str, bucket: EmulatedS3) -> None:
    rig.preview()
    said: list[str] = []
    ours = custody(rig.paths, url, said)
    ours.push()
    text = ours.shelf.read()
    assert text
    assert Sealed.read(text).header.stack == NAME
    values = [file.read_bytes().strip() for file in rig.paths.secrets.iterdir()]
    assert values
    for content, _ in bucket.objects.values():
        assert not [value for value in values if value in content]
    ours.push()
    assert said[-1].startswith("Nothing to push")
    ours.remove()
    assert not [key for key in bucket.objects if key.endswith("-bundle.json")]


def test_a_state_moves_from_its_folder_into_a_bucket_with_all_that_runs(rig: Rig, url: str) -> None:
    rig.backend = ""
    rig.up()
    before = rig.pids()
    here, there = rig.settings, EngineSettings(rig.settings.binary, url)
    with operate(NAME, rig.paths, (), here, "move") as engine:
        engine.copy_to(Engine(NAME, rig.paths, (), there))
        engine.discard()
    rig.backend = url
    assert not rig.up().changes
    assert rig.pids() == before
    with operate(NAME, rig.paths, (), EngineSettings(here.binary, own(rig.paths)), "look") as engine:
        assert not engine.state().resources


def test_wrong_credentials_are_said_in_the_backends_own_words(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ShelfError, match="SignatureDoesNotMatch") as failed:
        Shelf(NAME, pulumi_engine(), url).read()
    assert "wrong" not in str(failed.value)
