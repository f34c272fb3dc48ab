"""Keeps units on a machine without a service manager: a pod, which is a container. Standard library alone.

    keep.py start|stop|show|boot FOLDER [UNIT]

This file is copied to the pod and run there by its own Python. A unit is `FOLDER/UNIT.json`; its keeper, a process in
a session of its own, holds a lock on `FOLDER/UNIT.lock`, starts it again when it ends (unless it ended with 78, or
five times in ten minutes) and writes its output to `FOLDER/UNIT.log`, of which it keeps 16 MB. `boot` starts whatever
should run after the pod was started anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NEVER_AGAIN = 78
STARTS, WITHIN_S = 5, 600.0
ROTATE_AT = 8 * 1024 * 1024
STOPS_S = 300.0


def main(arguments: list[str]) -> int:
    verb, folder = arguments[0], Path(arguments[1])
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    match verb:
        case "start":
            stop(folder, arguments[2])
            start(folder, arguments[2])
        case "stop":
            stop(folder, arguments[2])
        case "boot":
            for file in sorted(folder.glob("*.json")):
                if not held(folder, file.stem):
                    start(folder, file.stem)
        case "show":
            for file in sorted(folder.glob("*.json")):
                print(json.dumps(show(folder, file.stem)))
    return 0


def start(folder: Path, unit: str) -> None:
    """Fork the keeper; returns once it holds the unit."""
    ours, keepers = os.pipe()
    if os.fork() == 0:
        os.close(ours)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        keep(folder, unit, keepers)
        os._exit(0)
    os.close(keepers)
    os.read(ours, 1)


def keep(folder: Path, unit: str, ready: int) -> None:
    """The keeper's life: run it, and run it again."""
    described: dict[str, Any] = json.loads((folder / f"{unit}.json").read_text())
    lock = (folder / f"{unit}.lock").open("a+")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    stopping: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def told(number: int, _frame: object) -> None:
        stopping.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(signal.Signals[described["stop_signal"]])

    signal.signal(signal.SIGTERM, told)
    starts: list[float] = []
    while not stopping:
        with log(folder, unit).open("ab") as output:
            child = subprocess.Popen(
                described["argv"],
                env={**inherited(), **described["env"]},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )
            started = {"keeper": os.getpid(), "pid": child.pid, "note": described["note"], "since": time.time()}
            note(folder, unit, started)
        if not starts:
            os.write(ready, b"1")
        starts = [*(at for at in starts if at > time.monotonic() - WITHIN_S), time.monotonic()]
        status = wait(child, stopping, described["stop_grace"])
        if status == NEVER_AGAIN or len(starts) >= STARTS:
            break
        end = time.monotonic() + described["restart_after_s"]
        while not stopping and time.monotonic() < end:
            time.sleep(0.1)
    (folder / f"{unit}.state").unlink(missing_ok=True)


def wait(child: subprocess.Popen[bytes], stopping: list[int], grace_s: float) -> int:
    """Until it has ended: by itself, or after being told to, or killed when it would not."""
    told_at = 0.0
    while True:
        try:
            return child.wait(0.2)
        except subprocess.TimeoutExpired:
            if stopping:
                told_at = told_at or time.monotonic()
                if time.monotonic() - told_at > grace_s:
                    os.killpg(child.pid, signal.SIGKILL)


def stop(folder: Path, unit: str) -> None:
    """Gone when this returns."""
    if not held(folder, unit):
        return
    keeper = state(folder, unit).get("keeper")
    if keeper:
        os.kill(keeper, signal.SIGTERM)
    end = time.monotonic() + STOPS_S
    while held(folder, unit):
        if time.monotonic() > end:
            raise SystemExit(f"{unit} does not end")
        time.sleep(0.05)


def held(folder: Path, unit: str) -> bool:
    """Whether a keeper has it."""
    try:
        with (folder / f"{unit}.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def show(folder: Path, unit: str) -> dict[str, Any]:
    return {"unit": unit, "running": held(folder, unit), **state(folder, unit)}


def state(folder: Path, unit: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / f"{unit}.state").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def note(folder: Path, unit: str, what: dict[str, Any]) -> None:
    draft = folder / f"{unit}.state.new"
    draft.write_text(json.dumps(what))
    draft.replace(folder / f"{unit}.state")


def log(folder: Path, unit: str) -> Path:
    """Set aside when it is long; one earlier one is kept."""
    file = folder / f"{unit}.log"
    if file.exists() and file.stat().st_size > ROTATE_AT:
        file.replace(folder / f"{unit}.log.1")
    return file


def inherited() -> dict[str, str]:
    """What the image says of itself (its paths and caches), which a login by SSH does not bring: init has it."""
    try:
        pairs = Path("/proc/1/environ").read_bytes().split(b"\0")
    except OSError:
        pairs = []
    image = dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)
    return {**os.environ, **{name: value for name, value in image.items() if name not in ("HF_TOKEN", "PUBLIC_KEY")}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
