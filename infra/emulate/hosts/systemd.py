"""A test machine's systemd: unit files started, kept, stopped and told of, by a server on a socket for `systemctl`.

No more of it than our own units use. Standard library alone.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

SYSTEM = Path("/etc/systemd/system")
WANTS = SYSTEM / "multi-user.target.wants"
SOCKET = "/run/standin-systemd"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
JOURNAL = Path("/var/log/standin-journal")


def section(text: str) -> dict[str, list[str]]:
    """Every key of a unit file with its values; sections do not matter to what is used of it."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, eq, value = line.partition("=")
        if eq and not line.startswith(("#", ";")):
            values.setdefault(key.strip(), []).append(value.strip())
    return values


def words(command: str) -> list[str]:
    """A command line as systemd reads it."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(command)]


class Service:
    """One unit: its process, started again when it ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state, self.sub = "inactive", "dead"
        self.process: subprocess.Popen[str] | None = None
        self.entered = 0
        self.wanted = False
        self.starts: list[float] = []
        self.loaded: dict[str, list[str]] = {}

    def load(self) -> bool:
        file = SYSTEM / self.name
        if file.exists():
            self.loaded = section(file.read_text())
        return file.exists()

    def one(self, key: str, default: str = "") -> str:
        return self.loaded.get(key, [default])[-1]

    def start(self) -> str:
        if self.state in ("active", "activating"):
            return ""
        self.wanted = True
        if self.one("Type") == "oneshot":
            for command in self.loaded.get("ExecStart", []):
                done = subprocess.run(words(command), capture_output=True, text=True, check=False)
                self.write(done.stdout + done.stderr)
                if done.returncode != 0:
                    self.state = "failed"
                    return f"Job for {self.name} failed."
            self.become("active", "exited")
            return ""
        trouble = self.spawn()
        if not trouble:
            threading.Thread(target=self.watch, daemon=True).start()
        return trouble

    def spawn(self) -> str:
        environment = {"PATH": PATH, "LANG": "C.UTF-8"}
        for line in self.loaded.get("Environment", []):
            for pair in words(line):
                key, _, value = pair.partition("=")
                environment[key] = value
        self.make_folders()
        for command in self.loaded.get("ExecStartPre", []):
            may_fail = command[0] == "-"
            as_root = command[0] == "+"
            done = subprocess.run(
                [*(() if as_root else self.becoming()), *words(command.lstrip("-+"))],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0 and not may_fail:
                self.state = "failed"
                return f"Job for {self.name} failed: {done.stderr}"
        try:
            self.process = subprocess.Popen(
                [*self.becoming(), *words(self.loaded["ExecStart"][-1])],
                env=environment,
                cwd=self.one("WorkingDirectory", "/"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            self.state = "failed"
            return f"Job for {self.name} failed: {error}"
        threading.Thread(target=self.listen, args=(self.process,), daemon=True).start()
        self.starts = [
            *(at for at in self.starts if at > time.monotonic() - float(self.one("StartLimitIntervalSec", "10"))),
            time.monotonic(),
        ]
        self.become("active", "running")
        return ""

    def make_folders(self) -> None:
        """Of `RuntimeDirectory`: the innermost is its user's."""
        for folder in self.one("RuntimeDirectory").split():
            path, user = Path("/run", folder), self.one("User", "root")
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(int(self.one("RuntimeDirectoryMode", "755"), 8))
            shutil.chown(path, user, user)

    def becoming(self) -> list[str]:
        """Its user, with the groups and the capabilities that it says; no more of its confinement."""
        user = self.one("User")
        if not user:
            return []
        groups = ",".join((self.one("Group", user), *self.one("SupplementaryGroups").split()))
        low = [f"+{name.removeprefix('CAP_').lower()}" for name in self.one("AmbientCapabilities").split()]
        capable = [word for name in low for word in ("--inh-caps", name, "--ambient-caps", name)]
        return ["setpriv", "--reuid", user, "--regid", user, "--groups", groups, *capable, "--no-new-privs", "--"]

    def become(self, state: str, sub: str) -> None:
        self.state, self.sub = state, sub
        self.entered = int(float(Path("/proc/uptime").read_text().split()[0]) * 1e6)

    def listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self.write(line)

    def write(self, text: str) -> None:
        with (JOURNAL / self.name).open("a") as journal:
            for line in text.splitlines():
                entry = {"__REALTIME_TIMESTAMP": str(time.time_ns() // 1000), "MESSAGE": line}
                journal.write(json.dumps(entry) + "\n")

    def watch(self) -> None:
        while self.process is not None:
            status = self.process.wait()
            if self.stopping():
                break
            again = self.one("Restart") == "always" and str(status) not in self.one("RestartPreventExitStatus").split()
            if not again or len(self.starts) >= int(self.one("StartLimitBurst", "5")):
                self.state, self.sub = "failed", "failed"
                return
            self.state, self.sub = "activating", "auto-restart"
            end = time.monotonic() + float(self.one("RestartSec", "0.1"))
            while not self.stopping() and time.monotonic() < end:
                time.sleep(0.05)
            if self.stopping() or self.spawn():
                break
        if self.stopping():
            self.state, self.sub = "inactive", "dead"

    def stopping(self) -> bool:
        return not self.wanted

    def stop(self) -> None:
        self.wanted = False
        process = self.process
        if process is not None and process.poll() is None:
            if stop := self.one("ExecStop"):
                subprocess.run(words(stop), capture_output=True, check=False)
            if process.poll() is None:
                process.send_signal(signal.Signals[self.one("KillSignal", "SIGTERM")])
            try:
                process.wait(float(self.one("TimeoutStopSec", "90")))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.state, self.sub = "inactive", "dead"


class Systemd:
    """Answers `systemctl`, one line of JSON a question."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.timers: dict[str, threading.Timer] = {}
        self.lock = threading.Lock()

    def serve(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(SOCKET)
        listener.listen(64)
        while True:
            caller, _ = listener.accept()
            threading.Thread(target=self.answer, args=(caller,), daemon=True).start()

    def answer(self, caller: socket.socket) -> None:
        with caller, caller.makefile("rw") as lines:
            status, said = self.call(lines.read().split("\0"))
            lines.write(f"{status}\n{said}")

    def service(self, name: str) -> Service:
        with self.lock:
            return self.services.setdefault(name, Service(name))

    def call(self, argv: list[str]) -> tuple[int, str]:
        verb, names = argv[0], [word if "." in word else f"{word}.service" for word in argv[1:] if word[0] != "-"]
        if verb == "daemon-reload":
            for service in list(self.services.values()):
                service.load()
            return 0, ""
        if verb == "on-active":
            return self.run_later(argv[1:])
        if verb == "show":
            shown = [name for name, before in zip(argv[1:], argv, strict=False) if name[0] != "-" and before != "-p"]
            return 0, "\n\n".join(self.show(self.service(name)) for name in shown)
        for name in names:
            service = self.service(name)
            if name == "docker.service":
                continue
            if timer := self.timers.get(name):
                timer.cancel()
                continue
            if not service.loaded and not service.load() and verb not in ("reset-failed", "is-enabled", "is-active"):
                return 5, f"Unit {name} not found."
            match verb:
                case "start" | "restart":
                    if verb == "restart":
                        service.stop()
                    if trouble := service.start():
                        return 1, trouble
                case "stop":
                    service.stop()
                case "reload":
                    assert service.process
                    subprocess.run(
                        words(service.one("ExecReload").replace("$MAINPID", str(service.process.pid))), check=True
                    )
                case "enable" | "disable":
                    link = WANTS / name
                    link.unlink(missing_ok=True)
                    if verb == "enable":
                        link.symlink_to(SYSTEM / name)
                    if "--now" in argv:
                        service.start() if verb == "enable" else service.stop()
                case "is-enabled":
                    return (0 if (WANTS / name).is_symlink() else 1), ""
                case "is-active":
                    return (0 if service.state == "active" else 3), service.state
                case "reset-failed":
                    service.starts = []
                    if service.state == "failed":
                        service.state, service.sub = "inactive", "dead"
        return 0, ""

    def run_later(self, argv: list[str]) -> tuple[int, str]:
        """`--unit=NAME --on-active=SECONDS COMMAND …`, as a transient timer does it."""
        options = dict(word.removeprefix("--").split("=", 1) for word in argv if word.startswith("--") and "=" in word)
        command = argv[next(index for index, word in enumerate(argv) if not word.startswith("--")) :]
        environment = {"PATH": PATH}
        timer = threading.Timer(
            float(options["on-active"]), lambda: subprocess.run(command, env=environment, check=False)
        )
        self.timers[f"{options['unit']}.timer"] = timer
        timer.start()
        return 0, ""

    def show(self, service: Service) -> str:
        there = (SYSTEM / service.name).exists()
        pid = service.process.pid if service.process and service.process.poll() is None else 0
        return "\n".join(
            (
                f"Id={service.name}",
                f"MainPID={pid}",
                f"LoadState={'loaded' if there else 'not-found'}",
                f"ActiveState={service.state}",
                f"SubState={service.sub}",
                f"UnitFileState={'enabled' if (WANTS / service.name).is_symlink() else 'disabled' if there else ''}",
                f"ActiveEnterTimestampMonotonic={service.entered}",
            )
        )
