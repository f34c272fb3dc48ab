"""The device that an engine works on, and what torch's errors say of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from traceback import clear_frames

import torch

from worker.engine import EngineBrokenError, LoadError, OutOfMemoryError
from worker.settings import TINY


def find_device(wanted: str, model: str) -> torch.device:
    """`wanted` as a device that is there; LoadError if it is not."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        if model != TINY:
            raise LoadError(
                f"model {model} wants a GPU and torch sees none; check the driver (nvidia-smi) and torch's CUDA build, "
                "serve the tiny model, or say device cpu to run it very slowly"
            )
        return torch.device("cpu")
    device = torch.device(wanted if wanted != "cuda" else "cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise LoadError(
            f"device {wanted}: torch sees {torch.cuda.device_count()} GPUs; check the driver (nvidia-smi), "
            "torch's CUDA build and CUDA_VISIBLE_DEVICES"
        )
    return device


def named(device: torch.device) -> str:
    """For people, e.g. `cuda:0 (NVIDIA H100 PCIe)`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def settle(device: torch.device) -> None:
    """Wait for the GPU: kernels are only queued when a call returns, and progress must not run ahead of them."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


@contextmanager
def torch_errors() -> Iterator[None]:
    """torch's errors, told apart by what they mean for the worker; others pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        match _meaning(error):
            case _Meaning.OUT_OF_MEMORY:
                # What failed holds its tensors by its frames still, and its cache may be in pieces that fit nobody.
                clear_frames(error.__traceback__)
                torch.cuda.empty_cache()
                raise OutOfMemoryError(f"the memory did not suffice: {error}") from error
            case _Meaning.BROKEN:
                raise EngineBrokenError(f"the GPU failed, and every later call with it: {error}") from error
            case _Meaning.OTHER:
                raise


NO_MEMORY = (
    "DefaultCPUAllocator: ",
    "Triton Error [CUDA]: out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "_STATUS_ALLOC_FAILED",
)
"""The last one is cuBLAS' and cuDNN's."""


class _Meaning(Enum):
    OUT_OF_MEMORY = auto()
    BROKEN = auto()
    OTHER = auto()


def _meaning(error: RuntimeError | MemoryError) -> _Meaning:
    # Some of torch's errors have classes; those of cuBLAS, cuDNN and the CPU's allocator have only their words.
    words = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in words for sign in NO_MEMORY):
        return _Meaning.OUT_OF_MEMORY
    if isinstance(error, torch.AcceleratorError) or words.startswith(
        ("CUDA error", "cuDNN error", "CUDA driver error")
    ):
        return _Meaning.BROKEN
    return _Meaning.OTHER
