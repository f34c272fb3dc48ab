"""`letterpress tunnels`: how a router host reaches its workers elsewhere, as its tunnel service wrote it down."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from infra.deployment import Deployment
from infra.errors import InfraError
from infra.view.console import say, show_table
from router.client import RouterClientError
from router.contract import TunnelsView


class TunnelsError(InfraError):
    """The router did not answer; the message has its words."""


async def show(deployment: Deployment) -> None:
    """A table, a row for each worker that is reached through a tunnel."""
    try:
        async with deployment.admin() as client:
            view = await client.tunnels()
    except RouterClientError as error:
        raise TunnelsError(str(error)) from None
    if view.trouble:
        say(f"! {view.trouble}")
    if view.tunnels:
        show_table(table(view))
    elif not view.trouble:
        say("No machine of this stack is reached through a tunnel.")


def table(view: TunnelsView) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("machine", "state", "since (UTC)", "worker", "way", "reason"):
        shown.add_column(column, no_wrap=column != "reason")
    for tunnel in view.tunnels:
        since = tunnel.since.strftime("%Y-%m-%d %H:%M:%S")
        for way in tunnel.forwards:
            open_or_shut = "open" if way.up else "shut"
            cells = (tunnel.machine, tunnel.state, since, way.worker, open_or_shut, way.reason or tunnel.reason)
            shown.add_row(*(escape(cell) for cell in cells))
        if not tunnel.forwards:
            shown.add_row(escape(tunnel.machine), tunnel.state, since, "", "", escape(tunnel.reason))
    return shown
