"""The one clock of everything that expires: the database's, read inside the statement that uses it.

Several routers may share one database and then agree on when a lease ends, whatever their own clocks
say. A test passes a `Clock` of its own and moves it by hand.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import BigInteger, ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

Clock = Callable[[], ColumnElement[int]]
"""Makes an SQL expression: integer milliseconds since the Unix epoch."""


class _NowMs(FunctionElement[int]):
    type = BigInteger()
    inherit_cache = True


@compiles(_NowMs, "sqlite")
def _sqlite(_element: _NowMs, _compiler: SQLCompiler, **_options: object) -> str:
    # Milliseconds without the 'subsec' modifier, which SQLite has only since 3.42. A Julian day is a double
    # whose last bit is worth 40 microseconds today, so rounding gives the very millisecond.
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"


@compiles(_NowMs, "postgresql")
def _postgresql(_element: _NowMs, _compiler: SQLCompiler, **_options: object) -> str:
    # Not now(): that is when the transaction began, and one may have waited for a lock since.
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


_NOW = _NowMs()


def database_clock() -> ColumnElement[int]:
    """Always the same expression: statements that hold it are built once (`router.store.choice_rows`)."""
    return _NOW
