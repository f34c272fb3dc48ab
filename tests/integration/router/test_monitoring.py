"""The dashboard and the rules name metrics that there are, in PromQL that Prometheus itself accepts."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from infra.paths import repository_root
from infra.setup.for_tests import find_promtool
from router.contract import JobRequest
from tests.integration.router.served import ServedRouter, until

MONITORING = repository_root() / "docs" / "monitoring"
METRIC = re.compile(r"\bletterpress_[a-z_]+")
VARIABLES = {"$__rate_interval": "5m", "$pool": ".*"}


def alerts() -> dict[str, str]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels() -> dict[str, str]:
    board = json.loads((MONITORING / "grafana.json").read_text())
    found = {}
    for panel in board["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_every_metric_that_they_name_is_there(router: ServedRouter) -> None:
    async with router.client() as client:
        await client.wait((await client.submit(JobRequest(prompt="a press", width=256, height=256))).id)
    async with httpx.AsyncClient(base_url=router.admin_url, trust_env=False) as http:

        async def counted() -> bool:
            return "letterpress_http_request_seconds_bucket" in (await http.get("/metrics")).text

        await until(counted, "requests are counted, which comes after their answer")
        there = {line.split("{")[0].split(" ")[0] for line in (await http.get("/metrics")).text.splitlines()}
    assert "letterpress_worker_busy_seconds_total" in there
    for where, expression in (alerts() | panels()).items():
        assert METRIC.search(expression) or "up{" in expression, where
        assert set(METRIC.findall(expression)) <= there, where
    listed = set(METRIC.findall((MONITORING / "README.md").read_text()))
    histograms = {f"letterpress_{name}_seconds" for name in ("job_wait", "job_service", "http_request")}
    assert listed - histograms <= there
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in there if name.startswith("letterpress_")}
    assert families <= listed, "the list for people leaves one out"


@pytest.mark.skipif(find_promtool() is None, reason="promtool is not installed (make setup-test installs it)")
def test_prometheus_accepts_the_rules_and_the_dashboards_queries(tmp_path: Path) -> None:
    queries = tmp_path / "queries.yaml"
    rules = [{"record": f"panel:{at}", "expr": expression} for at, expression in enumerate(panels().values())]
    queries.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(
        [str(find_promtool()), "check", "rules", str(MONITORING / "alerts.yaml"), str(queries)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(alerts())} rules found" in checked.stdout


@pytest.mark.skipif(find_promtool() is None, reason="promtool is not installed (make setup-test installs it)")
def test_several_routers_that_say_the_same_do_not_count_twice(tmp_path: Path) -> None:
    labels = 'pool="interactive", instance='
    series = [
        {"series": f'letterpress_queue_depth{{{labels}"{router}"}}', "values": "3x20"} for router in ("a", "b")
    ] + [{"series": f'letterpress_workers{{{labels}"a", health="ready"}}', "values": "0x20"}]
    test = {
        "rule_files": [str(MONITORING / "alerts.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [
                    {
                        "eval_time": "10m",
                        "alertname": "LetterpressPoolWithoutWorkers",
                        "exp_alerts": [
                            {
                                "exp_labels": {"severity": "page", "pool": "interactive"},
                                "exp_annotations": {
                                    "summary": "Jobs wait in interactive, and no worker there is ready",
                                    "description": ("`make status` says why each is not; jobs wait until one is."),
                                },
                            }
                        ],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [str(find_promtool()), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
