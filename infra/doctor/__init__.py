"""`letterpress doctor`: what would go wrong with a deploy, found before anything is spent or changed.

    findings = await examine(Surroundings(...), CHECKS)

A check is a function that looks and tells; `CHECKS` is the list, to which others add theirs. None of them changes
anything. What a deploy finds out by itself, and says well, is asked here all the same: an hour earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from infra.paths import StackPaths
from infra.ssh.target import Target
from infra.stack import StackDescription

CHECK_S = 60.0


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"  # a deploy goes on; look at it all the same
    FAIL = "fail"  # a deploy would fail


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `todo` is what to do about it, empty where all is well."""

    check: str
    verdict: Verdict
    what: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What checks look at. `targets` are the stack's machines that are reached through SSH, by name."""

    description: StackDescription
    paths: StackPaths
    environ: Mapping[str, str]
    engine: Path | None
    targets: Mapping[str, Target] = field(default_factory=dict)


Check = Callable[[Surroundings], Awaitable[Sequence[Finding]]]


async def examine(surroundings: Surroundings, checks: Sequence[tuple[str, Check]]) -> tuple[Finding, ...]:
    """All findings, in the order of the checks, which run side by side."""

    async def run(name: str, check: Check) -> Sequence[Finding]:
        try:
            async with asyncio.timeout(CHECK_S):
                return await check(surroundings)
        except TimeoutError:
            return [Finding(name, Verdict.WARN, f"gave no answer within {CHECK_S:g} s", "run it again")]

    found = await asyncio.gather(*(run(name, check) for name, check in checks))
    return tuple(finding for findings in found for finding in findings)


def worst(findings: Sequence[Finding]) -> Verdict:
    """Of all: what the exit code says."""
    ranks = list(Verdict)
    return max((finding.verdict for finding in findings), key=ranks.index, default=Verdict.OK)
