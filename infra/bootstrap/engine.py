"""Docker, and NVIDIA's container toolkit where there are GPUs: installed where they are missing."""

from __future__ import annotations

from dataclasses import dataclass

from infra.bootstrap.machine import Machine
from infra.bootstrap.step import NOTHING, VMS, Wrong
from infra.clouds import HostKind
from infra.ssh.connection import Done

INSTALL_S = 900.0
APT = "DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300"
BY_HAND = "Install it by hand as its maker says, and deploy again: the step is then found right"


@dataclass(frozen=True, slots=True)
class Docker:
    name: str = "Docker"
    kinds: frozenset[HostKind] = VMS

    def look(self, _: Machine) -> str:
        return "docker version --format '{{.Server.Version}}'"

    def judge(self, _: Machine, seen: Done) -> Wrong | None:
        return None if seen.status == 0 else Wrong("is not there, or does not answer", BY_HAND)

    async def act(self, machine: Machine) -> None:
        script = f"""set -e
command -v docker >/dev/null || {{ command -v apt-get >/dev/null || {{ echo "no Docker, and no apt-get"; exit 1; }}
  {APT} update -qq; {APT} install -y -qq --no-install-recommends docker.io docker-buildx || \
  {APT} install -y -qq --no-install-recommends docker.io; }}
systemctl enable --now docker"""
        await machine.connection.run(script, "installing Docker", within_s=INSTALL_S, advice=BY_HAND)


@dataclass(frozen=True, slots=True)
class Toolkit:
    """What lets a container have a GPU."""

    name: str = "NVIDIA container toolkit"
    kinds: frozenset[HostKind] = VMS

    def look(self, machine: Machine) -> str:
        return "docker info --format '{{json .Runtimes}}' | grep -q nvidia" if machine.described.gpus else NOTHING

    def judge(self, _: Machine, seen: Done) -> Wrong | None:
        return None if seen.status == 0 else Wrong("Docker has no runtime for GPUs", BY_HAND)

    async def act(self, machine: Machine) -> None:
        # NVIDIA's own repository, as its installation guide has it.
        script = f"""set -e
command -v nvidia-ctk >/dev/null || {{ command -v apt-get >/dev/null || {{ echo "no apt-get here"; exit 1; }}
  {APT} update -qq; {APT} install -y -qq --no-install-recommends curl gnupg ca-certificates
  curl -fsSL https://nvidia.github.io/libnvidia-container/gpgkey | \
    gpg --batch --yes --dearmor -o /usr/share/keyrings/nvidia-container-toolkit-keyring.gpg
  curl -fsSL https://nvidia.github.io/libnvidia-container/stable/deb/nvidia-container-toolkit.list | \
    sed 's#deb https://#deb [signed-by=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg] https://#' \
    >/etc/apt/sources.list.d/nvidia-container-toolkit.list
  {APT} update -qq; {APT} install -y -qq nvidia-container-toolkit; }}
nvidia-ctk runtime configure --runtime=docker
systemctl restart docker"""
        doing = "installing NVIDIA's container toolkit"
        await machine.connection.run(script, doing, within_s=INSTALL_S, advice=BY_HAND)
