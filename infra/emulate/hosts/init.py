"""The first process of a test machine: mounts its disk, starts sshd, and does systemd's work for unit files (`systemd`).

    python -S -m infra.emulate.hosts.init SPECIFICATION.json

Run by `infra.emulate.hosts.machine` in namespaces of its own. Standard library alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from infra.emulate.hosts.standins import CHECKOUT, COMPILED
from infra.emulate.hosts.systemd import JOURNAL, SYSTEM, WANTS, Systemd

OVERLAID = ("/etc", "/var", "/root", "/home", "/usr/local", "/usr/sbin", "/srv")
WORKERS_USER = 10001
CODE = Path("/usr/local/lib/standins")
"""Of the stand-ins that are more than a few lines: imported, it is compiled once a machine and not with each call."""
SHELL_FILES = (".bashrc", ".profile", ".bash_profile", ".bash_login", ".bash_logout")


def main(specification: str) -> None:
    spec = json.loads(Path(specification).read_text())
    mount_disk(Path(spec["disk"]))
    first = not Path("/etc/standin-installed").exists()
    if first:
        install(spec)
    Path("/run/sshd").mkdir(mode=0o755)
    mount_checkout(spec)
    subprocess.run(["nft", "flush", "ruleset"], check=False)
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        serve(spec)
        os._exit(0)
    adopt()


def adopt() -> None:
    """Bury orphans, as the first process has to, until nobody is left."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def mount_checkout(spec: dict[str, Any]) -> None:
    """The code of containers' images, and where what Python made of it is kept: an image has its code compiled, once for
    all machines that run it."""
    compiled = Path(spec["compiled"])
    compiled.mkdir(exist_ok=True)
    os.chown(compiled, WORKERS_USER, WORKERS_USER)
    for there, here in ((CHECKOUT, Path(spec["checkout"])), (COMPILED, compiled)):
        Path(there).mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", str(here), there], check=True)


def mount_disk(disk: Path) -> None:
    """Its own folders over those of the computer that the tests run on."""
    for folder in OVERLAID:
        upper, work = (disk / kind / folder.strip("/").replace("/", "-") for kind in ("upper", "work"))
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={folder},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, folder], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)


def install(spec: dict[str, Any]) -> None:
    """Users, keys and stand-ins, on the new machine's disk."""
    for folder in (SYSTEM, WANTS, JOURNAL):
        folder.mkdir(parents=True, exist_ok=True)
    install_standins(spec, ("systemctl", "systemd-run", "journalctl", "docker", "nvidia-smi"))
    if spec["packages"]:
        Path("/etc/pip.conf").write_text(
            f"[global]\nno-index = true\nfind-links = {spec['packages']}\n[install]\nno-compile = true\n"
        )
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
    # Whom the worker's image runs it as: there is one table of users for the machine and its containers.
    subprocess.run(["useradd", "-u", str(WORKERS_USER), "-M", "-d", "/tmp", "letterpress"], check=True)
    for user in spec["users"]:
        name, home = user["name"], Path("/root" if user["name"] == "root" else f"/home/{user['name']}")
        if name != "root":
            subprocess.run(["useradd", "-m", "-s", "/bin/sh", name], check=True)
            subprocess.run(["chpasswd"], input=f"{name}:{user.get('password') or 'unused'}\n", text=True, check=True)
            rule = "ALL" if user.get("password") else "NOPASSWD: ALL"
            sudoers = Path("/etc/sudoers.d", name)
            sudoers.write_text(f"{name} ALL=(ALL) {rule}\n")
            sudoers.chmod(0o440)
        else:
            new_home(home)
        ssh = home / ".ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        (ssh / "authorized_keys").write_text(user["key"] + "\n")
        (ssh / "authorized_keys").chmod(0o600)
        subprocess.run(["chown", "-R", f"{name}:", str(ssh)], check=True)
    may_be_entered(Path(spec["python"]))
    new_host_key()
    Path("/etc/standin-installed").write_text("")


def install_standins(spec: dict[str, Any], names: tuple[str, ...]) -> None:
    """Those programs, and Python."""
    CODE.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("standins.py"), CODE)
    called = f"import sys\nsys.path.insert(0, {str(CODE)!r})\nimport standins\nstandins.main()\n"
    for name in names:
        program = Path(__file__).with_name("systemctl.py").read_text() if name.startswith("system") else called
        file = Path("/usr/local/bin", name)
        file.unlink(missing_ok=True)
        file.write_text(f"#!{spec['python']} -IS\n{program}")
        file.chmod(0o755)
    python = Path("/usr/local/bin/python3")
    python.unlink(missing_ok=True)
    python.symlink_to(spec["python"])
    Path("/etc/standin.json").write_text(json.dumps(spec["standin"]))


def may_be_entered(python: Path) -> None:
    """Containers' users run the interpreter, wherever it lies."""
    for folder in python.parents:
        if f"/{folder.parts[1] if len(folder.parts) > 1 else ''}" in OVERLAID:
            folder.chmod(folder.stat().st_mode | 0o055)


def new_home(home: Path) -> None:
    """What a login shell reads is a new machine's: that of whoever runs the tests may take a second for each command."""
    for name in SHELL_FILES:
        (home / name).unlink(missing_ok=True)
        if (given := Path("/etc/skel", name)).exists():
            shutil.copy(given, home / name)


def new_host_key() -> None:
    key = Path("/etc/ssh/standin_key")
    for file in (key, key.with_suffix(".pub")):
        file.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)


def serve(spec: dict[str, Any]) -> None:
    sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", "/etc/ssh/standin_key", "-p", str(spec["port"])]
    options = (
        "UsePAM=no",
        "PasswordAuthentication=no",
        "PidFile=none",
        "LogLevel=VERBOSE",
        "MaxStartups=50",
        "MaxSessions=50",
    )
    with Path("/var/log/sshd").open("ab") as log:
        subprocess.Popen([*sshd, *(word for option in options for word in ("-o", option))], stdout=log, stderr=log)
    systemd = Systemd()
    for link in sorted(WANTS.glob("*.service")):
        systemd.call(["start", link.name])
    systemd.serve()


if __name__ == "__main__":
    main(sys.argv[1])
