"""`letterpress doctor` as a person or a script sees it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from rich.markup import escape

from infra.clouds import Access
from infra.deployment import Deployment
from infra.doctor import Finding, Surroundings, Verdict, examine, worst
from infra.doctor.checks import CHECKS, ROUTER
from infra.doctor.live import CHECK as LIVE
from infra.doctor.live import live as ask_live
from infra.planning.placement import Placement
from infra.planning.planner import placed
from infra.planning.program import router_access
from infra.provider.place import NAME
from infra.provider.site import Site
from infra.setup.engine import find_engine
from infra.ssh.target import Target
from infra.stack.description import DescriptionError
from infra.view.console import OUT

COLOURS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


def targets(deployment: Deployment) -> dict[str, Target]:
    """The stack's own hosts, by their names in its file; one whose references lead nowhere is `keys`' to tell.

    A machine that was deployed is asked for under the name that its host key is pinned under.
    """
    placement, identity = placed(deployment.paths) if deployment.paths.root.is_dir() else (Placement(), None)
    pinned = {
        each.offer.region: identity.machine(each.machine, each.generation) for each in placement.machines if identity
    }
    site, found = Site(deployment.paths, os.environ), dict[str, Target]()
    for name, host in deployment.description.hosts.items():
        access = Access(host.address, host.port, host.user, host.key or "", host.sudo_password or "", host.kind)
        with suppress(DescriptionError):
            found[name] = site.target(pinned.get(name, name), access)
    if router := router_access(deployment.description):
        with suppress(DescriptionError):
            found[ROUTER] = site.target(identity.machine(NAME, 1) if identity else ROUTER, router, ROUTER)
    return found


def run(stack: str, model: str | None, *, as_json: bool, live: bool = False) -> int:
    """Print what was found; 1 if a deploy would fail. `live` asks the provider's own API, too."""
    deployment = Deployment.described(stack, model)
    around = Surroundings(deployment.description, deployment.paths, os.environ, find_engine(), targets(deployment))
    findings = asyncio.run(examine(around, [*CHECKS, *([(LIVE, ask_live)] if live else [])]))
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
