"""The operator's page on the admin app: what works, what does not, and since when. HTML from values, no script."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape

from router.contract import PoolView, WorkerHealth, WorkerView

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8889; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); } td.n, th.n { text-align: right; }
.health { white-space: nowrap; } .health::before { content: "●"; margin-right: .4em; }
.good::before { color: #2a9d4a; } .wait::before { color: #d29a1b; } .bad::before { color: #d1383d; }
footer, .soft { color: var(--soft); }
"""
_LOOK = {
    WorkerHealth.READY: "good",
    WorkerHealth.UNKNOWN: "wait",
    WorkerHealth.LOADING: "wait",
    WorkerHealth.DRAINING: "wait",
    WorkerHealth.BROKEN: "bad",
    WorkerHealth.UNREACHABLE: "bad",
    WorkerHealth.QUARANTINED: "bad",
}


def page(pools: Sequence[PoolView], workers: Sequence[WorkerView], version: str, now: datetime) -> str:
    """The whole page. It reloads itself every five seconds."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5">
<title>Letterpress: {_verdict(pools, workers)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Letterpress <span class="soft">{escape(version)}</span></h1>
<p>{_verdict(pools, workers)}</p>
<h2>Pools</h2>
{_pools(pools)}
<h2>Workers</h2>
{_workers(workers, now)}
<footer><p>{now:%Y-%m-%d %H:%M:%S} UTC · <a href="/metrics">metrics</a> · <a href="/openapi.json">admin API</a></p>
</footer>
</body>
</html>
"""


def _verdict(pools: Sequence[PoolView], workers: Sequence[WorkerView]) -> str:
    """The page in one sentence, for whoever has a second."""
    if not workers:
        return "No worker is registered: no image can be made."
    idle = [pool.name for pool in pools if pool.workers and not pool.ready]
    if idle:
        return f"No worker is ready in {escape(', '.join(idle))}: its jobs wait."
    ready = sum(worker.health is WorkerHealth.READY for worker in workers)
    return f"{ready} of {len(workers)} workers are ready."


def _pools(pools: Sequence[PoolView]) -> str:
    heads = ("pool", "ready", "queued", "running", "succeeded", "failed", "cancelled", "expired")
    rows = (
        (p.name, f"{p.ready} of {p.workers}", p.queued, p.running, p.succeeded, p.failed, p.cancelled, p.expired)
        for p in pools
    )
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{count}</td>' for count in counts)}</tr>"
        for name, *counts in rows
    )
    return _table([(head, head != "pool") for head in heads], body) if body else "<p class=soft>None yet.</p>"


def _workers(workers: Sequence[WorkerView], now: datetime) -> str:
    body = "".join(
        f"<tr><td>{escape(w.name)}</td><td>{escape(w.pool)}</td>"
        f'<td class="health {_LOOK[w.health]}">{w.health}</td><td class=n>{_span(now, w.since)}</td>'
        f"<td class=n>{w.running}</td><td class=n>{w.finished}</td>"
        f"<td>{escape(w.model or '')}</td><td>{escape(w.reason)}</td><td class=soft>{escape(w.url)}</td></tr>"
        for w in workers
    )
    heads = [("worker", False), ("pool", False), ("health", False), ("since", True), ("running", True)]
    heads += [("finished", True), ("model", False), ("reason", False), ("address", False)]
    return _table(heads, body) if body else "<p class=soft>None is registered; make deploy registers them.</p>"


def _table(heads: Sequence[tuple[str, bool]], body: str) -> str:
    row = "".join(f"<th{' class=n' if number else ''}>{head}</th>" for head, number in heads)
    return f"<table><thead><tr>{row}</tr></thead><tbody>{body}</tbody></table>"


def _span(now: datetime, since: datetime) -> str:
    """How long ago, in the largest unit that fits: 12 s, 5 min, 3 h, 2 d."""
    seconds = max(0, int((now - since).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
