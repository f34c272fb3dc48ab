"""The first process of a pod: a container that is the worker's image, run as `host` by its real entry point.

    python -S -m infra.emulate.hosts.pod SPECIFICATION.json

Run by `infra.emulate.hosts.machine` in namespaces of its own, with the image's environment. There is no systemd, no
Docker and no firewall in it, and its disk outlives a restart, as a container's does that is started again.
Standard library alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from infra.emulate.hosts.init import (
    WORKERS_USER,
    adopt,
    install_standins,
    may_be_entered,
    mount_checkout,
    mount_disk,
    new_home,
)
from infra.emulate.hosts.standins import CHECKOUT

VOLUME = "/srv/volume"
ENTRY_POINT = Path("/usr/local/bin/letterpress-container")
SSHD_CONFIG = Path("/etc/ssh/letterpress_sshd_config")


def environment(public_key: str, port: int) -> dict[str, str]:
    """What worker/Dockerfile says of the image, where things lie here, and what a pod is told."""
    return {
        "PATH": f"{CHECKOUT}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": CHECKOUT,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": "/srv/cache",
        "HF_HOME": "/srv/cache/huggingface",
        "LETTERPRESS_WORKER_CACHE_DIR": "/srv/cache/letterpress",
        "LETTERPRESS_VOLUME": VOLUME,
        "LETTERPRESS_SSH_PORT": str(port),
        "PUBLIC_KEY": public_key,
    }


def main(specification: str) -> None:
    spec = json.loads(Path(specification).read_text())
    mount_disk(Path(spec["disk"]))
    if not SSHD_CONFIG.exists():
        install(spec)
    mount_checkout(spec)
    if os.fork() == 0:
        os.execv(ENTRY_POINT, [str(ENTRY_POINT), "host"])
    adopt()


def install(spec: dict[str, Any]) -> None:
    """What the image has, on the new pod's disk."""
    install_standins(spec, ("nvidia-smi",))
    container = Path(spec["checkout"]) / "worker/container"
    shutil.copy(container / "entrypoint.sh", ENTRY_POINT)
    ENTRY_POINT.chmod(0o755)
    subprocess.run(["useradd", "-u", str(WORKERS_USER), "-m", "letterpress"], check=True)
    may_be_entered(Path(spec["python"]))
    new_home(Path("/root"))
    shutil.copy(container / "sshd_config", SSHD_CONFIG)


if __name__ == "__main__":
    main(sys.argv[1])
