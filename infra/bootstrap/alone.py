"""Secrets that programs of a machine will have in a file: where no other process finds it, and for no longer than one
runs.

The folder is in memory and in a mount namespace of the script's own. The kernel forgets both with the script's last
process, however that ends: a kill leaves nothing for anybody to remove.
"""

from __future__ import annotations

import shlex

from infra.hosts.systemd import STARTED

FOLDER = STARTED
"""For that script alone another one than everybody's of this name, and empty."""


def alone(script: str) -> str:
    """For `sh`, as root: `script`, which may put files into FOLDER. It ends with the first command that fails."""
    private = f"mount -t tmpfs -o mode=700 letterpress {FOLDER}"
    return f"mkdir -p {FOLDER} && exec unshare --mount sh -ec {shlex.quote(f'{private}; {script}')}"
