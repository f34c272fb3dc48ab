"""Whether a GPU will do, before anything is downloaded for it: a bad host is refused with the reason, in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the machine has. `driver` is the newest CUDA that its driver serves, as (major, minor); None: no driver.

    `capability` is the GPU's compute capability, `free` and `memory` are bytes.
    """

    name: str = ""
    driver: tuple[int, int] | None = None
    memory: int = 0
    free: int = 0
    capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Needs:
    """What torch and the weights want. `cuda` is None where torch was built without it."""

    cuda: tuple[int, int] | None
    memory: int
    capability: tuple[int, int] = (8, 0)


def unfit(gpu: Gpu, needs: Needs) -> str | None:
    """Why the GPU will not do, and what would; None where it will."""
    return next(_objections(gpu, needs), None)


def _objections(gpu: Gpu, needs: Needs) -> Iterator[str]:
    """The first one counts: what comes after it follows from it."""
    if needs.cuda is None:
        yield "this build of torch has no CUDA; install the ordinary one, or one for the machine's driver"
    elif gpu.driver is None:
        yield "no NVIDIA driver answers; start the container with its GPU (--gpus all), or take another host"
    # A driver serves every CUDA of its own major version, and older ones (CUDA's minor version compatibility).
    elif gpu.driver[0] < needs.cuda[0]:
        yield (
            f"the driver serves CUDA up to {_version(gpu.driver)} and torch was built for {_version(needs.cuda)}; "
            "take a host with a newer driver (allowedCudaVersions), or a build of torch for this one"
        )
    if not gpu.name:
        yield "the driver answers and shows no GPU; check CUDA_VISIBLE_DEVICES, or take another host"
    if gpu.capability < needs.capability:
        yield (
            f"{gpu.name} has compute capability {_version(gpu.capability)}; the weights' bf16 wants "
            f"{_version(needs.capability)} (Ampere) or newer"
        )
    if gpu.memory < needs.memory:
        yield f"{gpu.name} has {_gib(gpu.memory)}; this model wants {_gib(needs.memory)}"
    if gpu.free < needs.memory:
        yield (
            f"{gpu.name} has {_gib(gpu.free)} free of {_gib(gpu.memory)}, and this model wants {_gib(needs.memory)}: "
            "somebody else uses it; take another host"
        )


def look(device: str = "cuda:0") -> Gpu:
    """What torch sees. Imports torch: seconds."""
    import torch  # noqa: PLC0415

    driver = _driver()
    if driver is None or not torch.cuda.is_available():
        return Gpu(driver=driver)
    index = torch.device(device).index or 0
    free, memory = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    return Gpu(torch.cuda.get_device_name(index), driver, memory, free, (major, minor))


def needs(memory: int) -> Needs:
    """What this installation of torch wants of a GPU. Imports torch."""
    import torch  # noqa: PLC0415

    return Needs(cuda=_parsed(torch.version.cuda) if torch.version.cuda else None, memory=memory)


def _driver() -> tuple[int, int] | None:
    import ctypes  # noqa: PLC0415

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    # The only call of the driver that needs no cuInit, so it answers where a GPU is in trouble too.
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value <= 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _parsed(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _gib(size: int) -> str:
    return f"{size / GIB:.0f} GiB"
