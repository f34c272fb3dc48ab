"""A unit as systemd's unit file. Pure.

The file says itself what it is (`X-` keys, which systemd leaves alone), and each start notes in `/run` what it
started: what runs is known from there, whatever the file has become since.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from infra.hosts import Unit

FOLDER = PurePosixPath("/etc/systemd/system")
STARTED = PurePosixPath("/run/letterpress")
"""A file for each unit that was started since the machine booted: fingerprint and digest of its configuration."""
STARTS, WITHIN_S = 5, 600
"""A unit that ends so often in so many seconds is left down: its reason stands in its log, and a deploy shows it."""
NEVER_AGAIN = 78
"""sysexits' EX_CONFIG: settings that are wrong from the start are no better a second time."""


def service_name(prefix: str, unit: str) -> str:
    return f"{prefix}{unit}.service"


def note(unit: Unit) -> str:
    """What a start of the unit writes down."""
    return f"{unit.fingerprint} {unit.config or '-'}"


def unit_file(unit: Unit, prefix: str, folder: PurePosixPath) -> str:
    """The whole file. `prefix` begins the name of every unit of the stack, `folder` is the stack's on that host."""
    name = service_name(prefix, unit.name)
    mark = f"mkdir -p {STARTED} && echo '{note(unit)}' >{STARTED}/{name}"
    after = " ".join(("network-online.target", *(service_name(prefix, other) for other in unit.service.after)))
    lines = [
        "[Unit]",
        f"Description=Letterpress: {unit.name}",
        f"After={after}",
        "Wants=network-online.target",
        f"StartLimitIntervalSec={WITHIN_S}",
        f"StartLimitBurst={STARTS}",
        "",
        "[Service]",
        "Type=exec",
        f"WorkingDirectory={folder}",
        "UMask=0077",
        *(f"Environment={quoted(f'{key}={value}')}" for key, value in sorted(unit.env.items())),
        f"ExecStartPre=+/bin/sh -c {quoted(mark)}",
        *(f"ExecStartPre=-{command_line(command)}" for command in unit.service.before),
        f"ExecStart={command_line(unit.argv)}",
        *([f"ExecStop={command_line(unit.service.stop)}"] if unit.service.stop else []),
        *([f"ExecReload=/bin/kill -{unit.reload_signal} $MAINPID"] if unit.reload_signal else []),
        f"KillSignal={unit.stop_signal}",
        "KillMode=mixed",
        f"TimeoutStopSec={unit.stop_grace:g}",
        "Restart=always",
        f"RestartSec={unit.service.restart_after_s:g}",
        f"RestartPreventExitStatus={NEVER_AGAIN}",
        "LogRateLimitIntervalSec=30",
        "LogRateLimitBurst=2000",
        *unit.service.lines,
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
        "[X-Letterpress]",
        f"Fingerprint={unit.fingerprint}",
        f"Config={unit.config}",
        "",
    ]
    return "\n".join(lines)


def command_line(argv: tuple[str, ...]) -> str:
    """Variables are put in here, and nowhere else: a dollar stands for itself when it is doubled."""
    return " ".join(quoted(word.replace("$", "$$")) for word in argv)


def quoted(word: str) -> str:
    """One word as systemd reads it: C's escapes within quotes, specifiers doubled (systemd.service(5))."""
    escaped = word.replace("%", "%%")
    plain = escaped and escaped.isascii() and not set(escaped) & set(" \t\n\"'\\;#")
    return escaped if plain else json.dumps(escaped)
