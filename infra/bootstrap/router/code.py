"""This very checkout as a package, in a virtual environment of its own for each version.

What runs keeps the files that it was started from: the version before stays until the next one comes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infra.bootstrap.router.machine import RouterMachine
from infra.bootstrap.router.packages import FIND_PYTHON, PATH
from infra.bootstrap.step import VMS, Wrong
from infra.clouds import HostKind
from infra.errors import InfraError
from infra.paths import repository_root
from infra.ssh.connection import Done
from infra.ssh.threads import in_thread

BUILD_S = 120
INSTALL_S = 900.0
ADVICE = (
    "Can this machine reach a Python package index (pip's own settings are taken: /etc/pip.conf)? Is there room? df -h"
)


class WheelError(InfraError):
    """The checkout could not be made into a package; the message has the builder's words."""


def build_wheel(folder: Path) -> Path:
    """By the project's own build backend, without network. Raises WheelError."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=repository_root(), capture_output=True, text=True, timeout=BUILD_S, check=False)
    made = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not made:
        raise WheelError(f"the package of this checkout could not be built:\n{(done.stderr or done.stdout).strip()}")
    return made[0]


@dataclass(frozen=True, slots=True)
class Code:
    name: str = "code"
    kinds: frozenset[HostKind] = VMS

    def look(self, machine: RouterMachine) -> str:
        code, current = machine.layout.code(machine.version), machine.layout.code("current")
        return f'test -e {code}/ready && test "$(readlink {current})" = {machine.version}'

    def judge(self, machine: RouterMachine, seen: Done) -> Wrong | None:
        return None if seen.status == 0 else Wrong(f"installing version {machine.version}", ADVICE)

    async def act(self, machine: RouterMachine) -> None:
        code, connection = machine.layout.code(machine.version), machine.connection
        ready = await connection.attempt(f"test -e {code}/ready", "looking for this version")
        if ready.status != 0:
            await self._install(machine)
        others = f"ls -1t {code.parent} | grep -vx -e {machine.version} -e current | tail -n +2"
        script = (
            f"set -e; cd {code.parent}; ln -sfn {machine.version} current.new; mv -T current.new current; "
            f'for old in $({others}); do rm -rf "$old"; done'
        )
        await connection.run(script, "taking this version")

    async def _install(self, machine: RouterMachine) -> None:
        code, connection = machine.layout.code(machine.version), machine.connection
        upload = PurePosixPath(f"/var/lib/letterpress/upload-{machine.stack_id}")
        machine.progress("code: building its package")
        with tempfile.TemporaryDirectory(prefix="letterpress-") as folder:
            wheel = await in_thread(machine.wheel, Path(folder))
            await connection.write(upload / wheel.name, wheel)
            await connection.write(upload / "constraints.txt", machine.constraints)
        script = f"""export {PATH} PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1; set -e; umask 022
rm -rf {code}
"$({FIND_PYTHON})" -m venv {code}
{code}/bin/python -m pip install --quiet -c {upload}/constraints.txt '{upload}/{wheel.name}[router]'
{code}/bin/python -c 'import router.serve, router.consume, router.tunnels'
rm -rf {upload}
touch {code}/ready"""
        await connection.run(
            script,
            "installing the router's code",
            within_s=INSTALL_S,
            on_line=lambda line: machine.progress(f"code: {line.strip()[:80]}"),
            advice=ADVICE,
        )
