"""The part of a stack file that describes machines which you have already, and what they run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from infra.clouds import HostKind
from infra.stack.words import Described, Host, Port, Reference, Text, User


class OwnHost(Described):
    """A machine that you have already, reached through SSH."""

    address: Host = Field(description="Its name or address.")
    port: Port = 22
    user: User = Field("root", description="Anybody else needs sudo there.")
    key: Text | None = Field(None, description="A private key's file here; default: the stack's own key.")
    sudo_password: Reference | None = Field(None, description="What sudo asks of `user`; default: it asks nothing.")
    kind: Literal[HostKind.VM, HostKind.CONTAINER] = Field(
        HostKind.VM, description="vm: a machine with systemd. container: a pod that runs the worker's image as `host`."
    )
    gpus: Annotated[int, Field(strict=True, ge=0, le=16)] = Field(1, description="How many it has; one worker each.")
    gpu: Text | None = Field(None, description="Their model, as in H100: a deploy refuses another. Default: any.")
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = Field(None, description="Of one GPU, at the least.")
    disk_gib: Annotated[float, Field(gt=0)] = Field(60.0, description="Free for image and weights, at the least.")
    download_mbit_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="A deploy measures it, and refuses a machine that is slower than half of that."
    )
    worker_memory_gib: Annotated[float, Field(gt=0)] = Field(64.0, description="Main memory that one worker may take.")


class Image(Described):
    """Where machines get the worker's image from. Default: each builds it from this checkout."""

    pull: Text | None = Field(None, description="A registry's reference, best by digest: ghcr.io/acme/worker@sha256:…")
    username: Text | None = Field(None, description="For a registry that asks who pulls.")
    password: Reference | None = None
    archive: Text | None = Field(None, description="A file of `docker save`, which is copied to each machine.")
    base_image: Text | None = Field(None, description="Of an image that is built; see worker/Dockerfile.")
    torch_backend: Literal["cpu", "cu126", "cu128", "cu130"] | None = Field(None, description="Of one that is built.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [self.pull, self.archive, self.base_image or self.torch_backend]
        if sum(way is not None for way in ways) > 1:
            raise PydanticCustomError("image", "should have one of: pull, archive, or what a build is told")
        if (self.username is None) != (self.password is None) or (self.username and not self.pull):
            raise PydanticCustomError("image", "should have username and password together, and with pull")
        return self
