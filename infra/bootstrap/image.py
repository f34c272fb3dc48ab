"""The worker's image: pulled from a registry, loaded from a saved one, or built on the machine from this checkout."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from infra.bootstrap.alone import FOLDER, alone
from infra.bootstrap.context import DOCKERFILE, build_context
from infra.bootstrap.machine import Machine
from infra.bootstrap.step import VMS, Wrong
from infra.clouds import HostKind
from infra.paths import repository_root
from infra.ssh.connection import Done
from infra.ssh.threads import in_thread

PULL_S = 3600.0
BUILD_S = 3600.0


IN_THE_FILE = """printf '{"auths":{"letterpress.invalid":{}}}'"""
"""A Docker that finds no login looks for a credential helper of root's own, and would leave this one there."""


@dataclass(frozen=True, slots=True)
class PodImage:
    """A pod is the worker's image, and its units are kept by that image's Python."""

    name: str = "image"
    kinds: frozenset[HostKind] = frozenset({HostKind.CONTAINER})

    def look(self, _: Machine) -> str:
        return (
            "command -v letterpress-container >/dev/null || echo letterpress-container; "
            "python3 -c '' 2>/dev/null || echo python3"
        )

    def judge(self, _: Machine, seen: Done) -> Wrong | None:
        missing = seen.output.split()
        if not missing:
            return None
        return Wrong(
            f"there is no {' and no '.join(missing)} in this container, so it is not the worker's image",
            "Start it from that image (docs/container.md), or describe it with `kind: vm` if it is a machine",
            final=True,
        )

    async def act(self, machine: Machine) -> None:
        """Whoever rents or starts the container says what it is."""


@dataclass(frozen=True, slots=True)
class Image:
    name: str = "image"
    kinds: frozenset[HostKind] = VMS

    def look(self, machine: Machine) -> str:
        return f"docker image inspect {shlex.quote(machine.image.tag)} >/dev/null 2>&1"

    def judge(self, machine: Machine, seen: Done) -> Wrong | None:
        return None if seen.status == 0 else Wrong(f"{machine.image.tag} is not there")

    async def act(self, machine: Machine) -> None:
        image = machine.image
        if image.pull:
            await self._pull(machine)
        elif image.archive:
            await self._load(machine)
        else:
            await self._build(machine)

    async def _pull(self, machine: Machine) -> None:
        image, connection = machine.image, machine.connection
        script = f"docker pull --quiet {shlex.quote(image.pull)}"
        if image.username:  # Docker will have a login in a file
            registry = image.pull.split("/")[0] if "." in image.pull.split("/")[0] else ""
            log_in = f"docker --config {FOLDER} login -u {shlex.quote(image.username)} --password-stdin {registry}"
            pull = f"docker --config {FOLDER} pull --quiet {shlex.quote(image.pull)}"
            script = alone(f"{IN_THE_FILE} >{FOLDER}/config.json; {log_in} >/dev/null; {pull}")
        await connection.run(
            script,
            f"pulling {image.pull}",
            stdin=image.password.encode(),
            within_s=PULL_S,
            on_line=lambda line: machine.progress(f"image: {line.strip()[:80]}"),
            advice="Does the registry know this image, and let this machine have it? See `image.pull`, "
            "`image.username` and `image.password` in the stack file",
        )

    async def _load(self, machine: Machine) -> None:
        image = machine.image
        assert image.archive is not None  # noqa: S101 - the caller looked
        machine.progress(f"image: copying {image.archive.name}")
        said = await machine.connection.run(
            "docker load",
            f"loading {image.archive.name}",
            stdin=image.archive,
            within_s=PULL_S,
            advice="Is it a file of `docker save`, and is there room for it? docker system df",
        )
        loaded = said.strip().splitlines()[-1].rpartition(": ")[2]
        await machine.connection.run(f"docker tag {shlex.quote(loaded)} {image.tag}", "naming the image")

    async def _build(self, machine: Machine) -> None:
        image = machine.image
        machine.progress("image: uploading what it is built from")
        context = await in_thread(build_context, repository_root())
        arguments = " ".join(shlex.quote(f"--build-arg={name}={value}") for name, value in image.build_args)
        await machine.connection.run(
            f"DOCKER_BUILDKIT=1 docker build --progress=plain -f {DOCKERFILE} -t {image.tag} {arguments} - 2>&1",
            f"building {image.tag}",
            stdin=context,
            within_s=BUILD_S,
            on_line=lambda line: machine.progress(f"image: {line.strip()[:80]}"),
            advice="Can this machine reach a registry and a Python package index? Is there room? docker system df",
        )
