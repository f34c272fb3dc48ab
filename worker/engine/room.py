"""Waits for a GPU's memory that somebody gives back, where the GPU is large enough and too little of it is free.

A worker that was killed holds its GPU until the driver has cleared up, and its unit starts another at once.
Whether a model fits is `worker.engine.memory`'s.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

import torch

from worker.engine import InUseError, LoadError, OnStage
from worker.engine.memory import GIB, Plan

WAIT_S = 60.0
LOOK_S = 2.0
OURS = 0.75 * GIB
"""Of a GPU's memory, what nobody's use of it leaves free: this process' context (0.5 GiB) and the driver's own."""
SMI_S = 10.0

MakePlan = Callable[[float], Plan]
"""From the free bytes; LoadError if they do not suffice."""


def planned(plan: MakePlan, device: torch.device, on_stage: OnStage) -> Plan:
    """What fits on `device`, as soon as others have given back what they hold of it; see `waited`."""
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return waited(plan, lambda: torch.cuda.mem_get_info(device), lambda: holders(uuid), time.sleep, on_stage)


def waited(
    plan: MakePlan,
    look: Callable[[], tuple[float, float]],
    who: Callable[[], str],
    pause: Callable[[float], None],
    on_stage: OnStage,
) -> Plan:
    """`look` gives the free bytes and all of them, `who` names those who hold the others.

    LoadError at once if the GPU could not hold it were all of it free, InUseError if it could and too little was
    free for WAIT_S.
    """
    for _ in range(int(WAIT_S / LOOK_S)):
        free, whole = look()
        try:
            return plan(free)
        except LoadError:
            if not _fits(plan, whole - OURS):
                raise
        on_stage(f"waiting for GPU memory: {free / GIB:.1f} GiB of {whole / GIB:.1f} are free, {who()}")
        pause(LOOK_S)
    free, _ = look()
    try:
        return plan(free)
    except LoadError as error:
        raise InUseError(
            f"{error}; the rest was in use for {WAIT_S:.0f} s, {who()}: end that, or give this worker another GPU"
        ) from error


def _fits(plan: MakePlan, free: float) -> bool:
    try:
        plan(free)
    except LoadError:
        return False
    return True


def holders(uuid: str) -> str:
    """Who else computes on a GPU, in words, as far as the driver tells: in a container it hides others' processes."""
    asked = ["nvidia-smi", f"--id={uuid}", "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=SMI_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        said = ""
    lines = [[part.strip() for part in line.split(",")] for line in said.splitlines()]
    others = [f"process {line[0]} ({', '.join(line[1:])})" for line in lines if line[0] not in {"", str(os.getpid())}]
    return f"held by {' and '.join(others)}" if others else "held by somebody whom nvidia-smi does not name"
