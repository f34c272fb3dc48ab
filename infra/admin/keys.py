"""`letterpress keys`: who may ask the router for images, how much, and what they have used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date

from rich.markup import escape
from rich.table import Table

from infra.deployment import Deployment
from infra.errors import InfraError
from infra.view.console import ERR, OUT, say, show_table
from router.client import AdminClient, RouterClientError
from router.contract import KeyLimitsView, KeyRequest, KeyView, UsageView


class KeysError(InfraError):
    """The router did not do as asked; the message has its words."""


async def create(deployment: Deployment, name: str, limits: KeyLimitsView) -> None:
    """The key itself goes to standard output alone, so that it can be piped to where it is kept."""
    async with _admin(deployment) as client:
        made = await client.create_key(KeyRequest(name=name, limits=limits))
    OUT.print(escape(made.key))
    ERR.print(escape(f"Keep it now: the key {name} ({_limits(made.limits)}) is shown this once."))


async def show(deployment: Deployment) -> None:
    async with _admin(deployment) as client:
        show_table(keys_table(await client.keys()))


async def limit(deployment: Deployment, name: str, limits: KeyLimitsView) -> None:
    async with _admin(deployment) as client:
        changed = await client.limit_key(name, limits)
    say(f"Key {name}: {_limits(changed.limits)}, from now on.")


async def revoke(deployment: Deployment, name: str) -> None:
    async with _admin(deployment) as client:
        await client.revoke_key(name)
    say(f"Key {name} is revoked: nobody is let in with it. Jobs that were promised are finished.")


async def usage(deployment: Deployment, name: str, since: date | None) -> None:
    async with _admin(deployment) as client:
        days = await client.usage(name, since)
    if days:
        show_table(usage_table(days))
    else:
        say(f"Key {name} has used nothing in that time.")


def keys_table(found: Sequence[KeyView]) -> Table:
    """One row for each."""
    shown = _table("key", "fingerprint", "made", "revoked", "limits")
    for key in found:
        revoked = "" if key.revoked_at is None else f"{key.revoked_at:%Y-%m-%d}"
        cells = (key.name, key.fingerprint, f"{key.created_at:%Y-%m-%d}", revoked, _limits(key.limits))
        shown.add_row(*map(escape, cells))
    return shown


def usage_table(days: Sequence[UsageView]) -> Table:
    """One row a day, and what they come to."""
    shown = _table("day (UTC)", "images", "megapixels", "GPU seconds")
    rows = [(day.day.isoformat(), day.images, day.pixels, day.gpu_seconds) for day in days]
    together = ("all", sum(row[1] for row in rows), sum(row[2] for row in rows), sum(row[3] for row in rows))
    for name, images, pixels, seconds in (*rows, together):
        shown.add_row(name, f"{images:,}", f"{pixels / 1e6:,.1f}", f"{seconds:,.1f}")
    return shown


def _limits(limits: KeyLimitsView) -> str:
    said = [
        limits.per_minute is not None and f"{limits.per_minute} requests a minute",
        limits.running is not None and f"{limits.running} at once",
        limits.waiting is not None and f"{limits.waiting} waiting",
        limits.pools is not None and f"only {', '.join(limits.pools) or 'no pool'}",
    ]
    return "; ".join(word for word in said if word) or "no limits"


def _table(*columns: str) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        shown.add_column(column, no_wrap=i < len(columns) - 1)
    return shown


@asynccontextmanager
async def _admin(deployment: Deployment) -> AsyncIterator[AdminClient]:
    key = deployment.endpoint.admin_key_file.read_text().strip()
    try:
        async with deployment.admin(key) as client:
            yield client
    except RouterClientError as error:
        raise KeysError(str(error)) from None
