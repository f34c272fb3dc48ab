"""The folder of weights, and the weights in it: once a machine, whichever number of workers it has.

The hub's token goes there by standard input, for the one run that wants it, and into no command.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from infra.bootstrap.alone import FOLDER, alone
from infra.bootstrap.machine import Machine
from infra.bootstrap.step import EVERYWHERE, NOTHING, StepError, Wrong
from infra.clouds import HostKind
from infra.ssh.connection import Done

USER = 10001
"""Whom the worker runs as in its image."""
PULL_S = 4 * 3600.0
HERE = "letterpress-weights"
"""In the cache that it speaks of, which another stack may share and somebody may empty: a line for each repository that
is whole there."""


def reason(said: str) -> str:
    """What a fetch that failed said of it, out of all that it said."""
    lines = [line.strip() for line in said.strip().splitlines()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    return " ".join(lines[errors[-1] :] if errors else lines[-3:]).removeprefix("error: ")


def advice(why: str) -> str:
    """What to do about it, where the operator is."""
    if "HF_TOKEN" in why:
        return "HF_TOKEN of your environment is what the hub is shown; deploy again once that is mended"
    if "disk" in why:
        return "On a machine `cache` in the stack file names the folder; deploy again, and it goes on where it stopped"
    return "Deploy again, and it goes on where it stopped"


@dataclass(frozen=True, slots=True)
class Licence:
    """Somebody's yes, before anything else is done to the machine."""

    name: str = "licence"
    kinds: frozenset[HostKind] = EVERYWHERE

    def look(self, _: Machine) -> str:
        return NOTHING

    def judge(self, machine: Machine, _: Done) -> Wrong | None:
        repository = machine.weights.repository
        if not repository or machine.weights.accepted:
            return None
        return Wrong(
            f"nobody has said yes to the licence of {repository}",
            f"Read it at https://huggingface.co/{repository}, and say `accept_license: true` in the stack file",
            final=True,
        )

    async def act(self, machine: Machine) -> None:
        """Nobody but a person can."""


@dataclass(frozen=True, slots=True)
class Folder:
    name: str = "weights folder"
    kinds: frozenset[HostKind] = EVERYWHERE

    def look(self, machine: Machine) -> str:
        return f'test "$(stat -c %u {machine.cache} 2>/dev/null)" = {USER}'

    def judge(self, machine: Machine, seen: Done) -> Wrong | None:
        return None if seen.status == 0 else Wrong(f"making {machine.cache}")

    async def act(self, machine: Machine) -> None:
        script = f"mkdir -p {machine.cache} && chown {USER}:{USER} {machine.cache} && chmod 750 {machine.cache}"
        await machine.connection.run(script, "making the folder of weights")


@dataclass(frozen=True, slots=True)
class Weights:
    """`letterpress weights pull`, in the image: it goes on where it stopped, and verifies every file."""

    name: str = "weights"
    kinds: frozenset[HostKind] = EVERYWHERE

    def look(self, machine: Machine) -> str:
        repository = machine.weights.repository
        return f"grep -qxF {shlex.quote(repository)} {machine.cache / HERE}" if repository else NOTHING

    def judge(self, machine: Machine, seen: Done) -> Wrong | None:
        return None if seen.status == 0 else Wrong(f"{machine.weights.repository} is not whole on this machine")

    async def act(self, machine: Machine) -> None:
        weights, connection = machine.weights, machine.connection
        settings = [f"HF_TOKEN={weights.token}"] if weights.token else []
        settings += [f"HF_ENDPOINT={weights.endpoint}"] if weights.endpoint else []
        pull = f"weights pull {shlex.quote(weights.repository)} --accept-license"
        if machine.kind is HostKind.CONTAINER:
            # Into the folders where the unit will look: an image's own are not on the stack's volume.
            folders = f"HF_HOME={machine.cache}/huggingface LETTERPRESS_WORKER_CACHE_DIR={machine.cache}/letterpress"
            taken = 'while IFS= read -r setting; do export "$setting"; done'
            script = f"{taken}; {folders} letterpress-container {pull} 2>&1"
        else:
            told = FOLDER / "hub.env"
            name = f"letterpress-{machine.stack_id}-weights"  # whoever takes leave of the machine finds it
            script = alone(
                f"cat >{told}; docker rm -f {name} >/dev/null 2>&1 || true; "
                f"docker run --rm --name {name} --network host --env-file {told} -v {machine.cache}:/cache "
                f"{shlex.quote(machine.image.tag)} {pull} 2>&1"
            )
        done = await connection.attempt(
            script,
            f"fetching {weights.repository}",
            stdin="".join(f"{line}\n" for line in settings).encode(),
            within_s=PULL_S,
            on_line=lambda line: machine.progress(f"weights: {line.strip()[:80]}"),
        )
        if done.status != 0:
            why = reason(done.said) or f"ended with {done.status}"
            raise StepError(machine, self.name, why.removesuffix("."), advice(why))
        mark = machine.cache / HERE
        named = shlex.quote(weights.repository)
        note = f"grep -qxF {named} {mark} 2>/dev/null || echo {named} >>{mark}"
        await connection.run(note, "noting that the weights are here")
