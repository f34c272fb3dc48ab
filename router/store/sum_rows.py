"""How long jobs waited and took, and how long workers worked, added up in the transaction that ends a job.

So the sums are true whichever process drove the job, and over restarts: a router of several can tell all of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, text

from router.jobs import AttemptEnd
from router.store import Measure, Tally
from router.store.tables import tallies
from worker.contract import Timings

BOUNDS_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800, 3600, 14_400, 43_200)
"""Upper ends of the histogram's buckets; a last one, without end, has the number len(BOUNDS_S)."""

_ADDED = text(
    'INSERT INTO tallies ("of", measure, bucket, count, total_ms) VALUES (:of, :measure, :bucket, 1, :ms) '
    'ON CONFLICT ("of", measure, bucket) DO UPDATE SET count = tallies.count + 1, '
    "total_ms = tallies.total_ms + excluded.total_ms"
)


Line = Mapping[str, Any]
"""What is to be added to one row."""


def job_ended(row: Row[Any], worker: str = "", timings: Timings | None = None) -> list[Line]:
    """`row` is a job's as it is now. One that never met a worker counts nowhere. `worker` made the image, if any."""
    if row.started_at is None or row.finished_at is None:
        return []
    lines = [
        _line(row.pool, Measure.WAIT, row.started_at - row.created_at),
        _line(row.pool, Measure.SERVICE, row.finished_at - row.started_at),
    ]
    if timings is not None:
        # What a GPU does; the rest is waiting, and the file's compression.
        lines.append(_line(worker, Measure.BUSY, round(timings.gpu * 1000)))
    return lines


def attempts_ended(pools: Iterable[str], end: AttemptEnd) -> list[Line]:
    """Counted here, too, because a row of `attempts` goes with its job when that is old."""
    return [{"of": f"{pool}/{end}", "measure": Measure.ENDED.value, "bucket": 0, "ms": 0} for pool in pools]


def add(connection: Connection, lines: Iterable[Line]) -> None:
    """In one order everywhere: of two transactions that add to the same rows, neither waits for the other in a ring."""
    ordered = sorted(lines, key=lambda line: (line["of"], line["measure"], line["bucket"]))
    if ordered:
        connection.execute(_ADDED, ordered)


def _line(of: str, measure: Measure, ms: int) -> Line:
    ms = max(0, ms)
    bucket = 0 if measure is Measure.BUSY else bisect_left(BOUNDS_S, ms / 1000)
    return {"of": of, "measure": measure.value, "bucket": bucket, "ms": ms}


def every(connection: Connection) -> Sequence[Tally]:
    found = connection.execute(select(tallies).order_by(tallies.c.of, tallies.c.measure, tallies.c.bucket))
    # By place: `count` is a method of a row's.
    return [Tally(of, Measure(measure), bucket, count, total_ms) for of, measure, bucket, count, total_ms in found]
