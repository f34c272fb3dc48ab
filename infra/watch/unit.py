"""Watch as a unit of systemd: it goes on when nobody is logged in, and after a restart of the computer.

`letterpress watch STACK --install` puts it where the stack's folder is: the system's manager for root, a user's own
for anybody else. A router host on another machine runs the same text (`unit_text`) with the stack's folder there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.errors import InfraError
from infra.files import replace_file
from infra.hosts.systemd import command_line, quoted
from infra.paths import HOME, RUN, StackPaths, repository_root
from infra.stack.words import REFERENCE

TAKEN_OVER = ("SPHERON_", "RUNPOD_", "HF_", "LETTERPRESS_", "PULUMI_", "AWS_", "AZURE_", "GOOGLE_")
"""Beginnings of variables that a watch may need: accounts, the hub's token, the state's backend."""
STOPS_WITHIN_S = 150
"""The engine writes down what it is at; watch gives it two minutes."""
SYSTEMCTL_S = 180.0


class UnitError(InfraError):
    """The unit could not be installed or removed; the message says what systemd said."""


@dataclass(frozen=True, slots=True)
class Manager:
    """Whose systemd: where its unit files lie, how it is spoken to, and what its units begin with."""

    folder: Path
    systemctl: tuple[str, ...]
    target: str

    @classmethod
    def of(cls, uid: int, home: Path) -> Manager:
        if uid == 0:
            return cls(Path("/etc/systemd/system"), ("systemctl",), "multi-user.target")
        return cls(home / ".config/systemd/user", ("systemctl", "--user"), "default.target")


def unit_name(stack: str) -> str:
    return f"letterpress-watch-{stack}.service"


def unit_text(stack: str, command: Sequence[str], folders: Mapping[str, str], environment: Path, target: str) -> str:
    """The unit's file. `folders` are where stacks lie, as variables; `environment` is a file of more of them."""
    lines = (
        "[Unit]",
        f"Description=Letterpress: watches stack {stack}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=600",
        "StartLimitBurst=5",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={command_line((*command, 'watch', stack))}",
        *(f"Environment={quoted(f'{name}={value}')}" for name, value in sorted(folders.items())),
        f"EnvironmentFile={str(environment).replace('%', '%%')}",
        "UMask=0077",
        "KillSignal=SIGINT",
        # What a deploy of watch's starts on this computer (a tunnel, a router) is not ended with it.
        "KillMode=process",
        f"TimeoutStopSec={STOPS_WITHIN_S}",
        # It ends by itself when the stack does.
        "Restart=on-failure",
        "RestartSec=15",
        "",
        "[Install]",
        f"WantedBy={target}",
        "",
    )
    return "\n".join(lines)


def variables(description: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What of the environment a watch takes over; `description` is the stack's, as text. Raises UnitError."""
    named = set(REFERENCE.findall(description))
    taken = {
        name: value
        for name, value in environ.items()
        if value and name not in {HOME, RUN} and (name in named or name.startswith(TAKEN_OVER))
    }
    if broken := sorted(name for name, value in taken.items() if "\n" in value):
        raise UnitError(f"{', '.join(broken)}: a value of several lines cannot be handed to a unit")
    return taken


def environment_file(values: Mapping[str, str]) -> bytes:
    """As systemd reads it (systemd.exec(5), EnvironmentFile=)."""
    lines = (f"{name}={json.dumps(value, ensure_ascii=False)}\n" for name, value in sorted(values.items()))
    return "".join(lines).encode()


def install(stack: str, paths: StackPaths, description: str) -> Sequence[str]:
    """Have systemd watch the stack from now on, with the accounts of this very environment; lines for the user.

    A second time it takes over the environment of now.
    """
    manager = Manager.of(os.geteuid(), Path.home())
    environment = paths.root / "watch.env"
    replace_file(environment, environment_file(variables(description, os.environ)))
    folders = {HOME: str(paths.root.parent), RUN: str(paths.run.parent)}
    command = (sys.executable, "-c", "from infra.cli import main; main()")
    program = repository_root() / ".venv/bin/letterpress"
    text = unit_text(stack, (str(program),) if program.exists() else command, folders, environment, manager.target)
    file = manager.folder / unit_name(stack)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, text.encode(), 0o644)
    _systemctl(manager, "daemon-reload")
    _systemctl(manager, "enable", unit_name(stack))
    _systemctl(manager, "restart", unit_name(stack))
    return tuple(_said(manager, stack, environment))


def installed(stack: str) -> bool:
    return (Manager.of(os.geteuid(), Path.home()).folder / unit_name(stack)).exists()


def remove(stack: str, paths: StackPaths) -> bool:
    """End the unit and take it away, with the variables that it was given; whether there was one."""
    return _take_away(stack, paths, "disable", "--now")


def retire(stack: str, paths: StackPaths) -> bool:
    """As `remove`, by the unit itself: it is at its end, and is not to be started again."""
    return _take_away(stack, paths, "disable")


def _take_away(stack: str, paths: StackPaths, *words: str) -> bool:
    (paths.root / "watch.env").unlink(missing_ok=True)
    if not installed(stack):
        return False
    manager = Manager.of(os.geteuid(), Path.home())
    _systemctl(manager, *words, unit_name(stack))
    (manager.folder / unit_name(stack)).unlink()
    _systemctl(manager, "daemon-reload")
    return True


def _said(manager: Manager, stack: str, environment: Path) -> Iterator[str]:
    ctl, name = " ".join(manager.systemctl), unit_name(stack)
    user = " --user" if "--user" in manager.systemctl else ""
    yield f"Stack {stack} is watched by {name}, from now on and after a restart."
    yield f"  {ctl} status {name}        journalctl{user} -u {name}"
    yield f"  Its accounts are those of this environment, kept in {environment} (yours alone to read)."
    if user:
        yield "  It runs while you are logged in; `loginctl enable-linger` keeps it running after that."


def _systemctl(manager: Manager, *words: str) -> None:
    command = (*manager.systemctl, *words)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SYSTEMCTL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnitError(f"`{' '.join(command)}`: {error}; `letterpress watch` in a terminal needs no systemd") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"it ended with {done.returncode}"
        raise UnitError(f"`{' '.join(command)}`: {said}; `letterpress watch` in a terminal needs no systemd")
