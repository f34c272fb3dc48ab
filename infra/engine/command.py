"""Runs the Pulumi engine's binary for the Automation API, so that it can be stopped cleanly.

The API's own runner leaves its child in our process group: a Ctrl-C at the terminal would reach the engine
besides whatever we send, and a second interrupt makes it drop everything. Here the engine has a session
of its own and is interrupted by us alone, once, as often as a person means it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock, Timer
from typing import IO

from pulumi.automation import CommandResult, OnOutput, PulumiCommand
from pulumi.automation.errors import create_command_error
from semver import VersionInfo

from infra.errors import InfraError
from infra.setup.engine import ENGINE_VERSION

BACKEND_ACCESS = "PULUMI_ACCESS_TOKEN"
"""What a backend may ask for, and only the user has."""

PATIENT_INTERRUPTS = 2
"""The first lets the engine finish what it is writing, the second makes it end. A third means that it has not."""
KILL_GRACE_S = 5.0


class InterruptedBeforeError(InfraError):
    """A person had interrupted the operation when its next command was about to start."""


class EngineCommand(PulumiCommand):
    """The binary of one operation, with all its commands. Once interrupted, it starts no other.

    Not asked for its version: whoever found it has done that.
    """

    kill_grace_s: float = KILL_GRACE_S

    def __init__(self, binary: Path) -> None:
        self.command = str(binary)
        self.version = VersionInfo.parse(ENGINE_VERSION)
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._interrupts = 0

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: OnOutput | None = None,
        on_error: OnOutput | None = None,
    ) -> CommandResult:
        """Run one command to its end.

        Raises CommandError (one of its kinds) if it fails, InterruptedBeforeError if it may not start any more.
        """
        with self._lock:
            if self._interrupts:
                raise InterruptedBeforeError("interrupted before the engine was started")
            process = subprocess.Popen(
                [self.command, *args, "--non-interactive"],
                cwd=cwd,
                env={**_inherited(os.environ), **additional_env, "PULUMI_AUTOMATION_API": "true"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,
            )
            self._process = process
        with process, ThreadPoolExecutor(2) as readers:
            said = readers.submit(_lines, process.stdout, on_output)
            complained = readers.submit(_lines, process.stderr, on_error)
            code = process.wait()
        result = CommandResult(stdout="\n".join(said.result()), stderr="\n".join(complained.result()), code=code)
        if code != 0:
            raise create_command_error(result)
        return result

    def interrupt(self) -> None:
        """Ask what runs to stop: at first it finishes what it is writing, when asked again it just ends.

        Asked a third time, it is killed if it has not ended `kill_grace_s` later: nothing hangs for ever.
        """
        with self._lock:
            self._interrupts += 1
            if self._process is None:
                return
            self._process.send_signal(signal.SIGINT)
            if self._interrupts == PATIENT_INTERRUPTS + 1:
                killer = Timer(self.kill_grace_s, self._process.kill)
                killer.daemon = True
                killer.start()


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what the user has set for a Pulumi of their own.

    It would change ours in ways that nobody asked for. An exported PULUMI_CONFIG_PASSPHRASE, be it empty, is
    preferred to our file: the state's secrets would be sealed with it, and lost once it is no longer exported.
    """
    return {k: v for k, v in environ.items() if not k.startswith("PULUMI_") or k == BACKEND_ACCESS}


def _lines(stream: IO[str] | None, tell: Callable[[str], object] | None) -> list[str]:
    lines = []
    for line in stream or ():
        lines.append(line.rstrip())
        if tell:
            tell(lines[-1])
    return lines
