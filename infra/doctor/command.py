"""`letterpress doctor` as a person or a script sees it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape

from infra.console import OUT
from infra.deployment import Deployment
from infra.doctor import Finding, Surroundings, Verdict, examine, worst
from infra.doctor.checks import CHECKS
from infra.setup.engine import find_engine

COLOURS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


def run(stack: str, model: str | None, *, as_json: bool) -> int:
    """Print what was found; 1 if a deploy would fail."""
    deployment = Deployment.described(stack, model)
    around = Surroundings(deployment.description, deployment.paths, os.environ, find_engine())
    findings = asyncio.run(examine(around, CHECKS))
    if as_json:
        OUT.print(json.dumps([asdict(finding) for finding in findings], indent=2), markup=False)
    else:
        show(findings)
    return int(worst(findings) is Verdict.FAIL)


def show(findings: Sequence[Finding]) -> None:
    """A line for each, and beneath it what to do."""
    for finding in findings:
        colour = COLOURS[finding.verdict]
        OUT.print(f"[{colour}]{finding.verdict:<4}[/]  {finding.check:<11} {escape(finding.what)}")
        if finding.todo:
            OUT.print(f"{'':18}{escape(finding.todo)}")
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    OUT.print(f"{counts[Verdict.FAIL]} would make a deploy fail, {counts[Verdict.WARN]} to look at.")
