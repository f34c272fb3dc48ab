"""`letterpress webhooks`: what the router has told its users' receivers, and telling them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.markup import escape
from rich.table import Table

from infra.deployment import Deployment
from infra.errors import InfraError
from infra.view.console import say, show_table
from router.client import RouterClientError
from router.contract import DeliveryState, DeliveryView


class WebhooksError(InfraError):
    """The router did not do as asked; the message has its words."""


async def show(deployment: Deployment, state: DeliveryState | None, limit: int) -> None:
    """A table, the newest first."""
    with _in_our_words():
        async with deployment.admin() as client:
            found = await client.webhooks(state, limit)
    if found:
        show_table(table(found))
    else:
        say(f"No webhooks{f' are {state.value}' if state else ''}.")


async def replay(deployment: Deployment, ids: Sequence[str]) -> None:
    """These, or all that are dead if there are none."""
    key = deployment.endpoint.admin_key_file.read_text().strip()
    with _in_our_words():
        async with deployment.admin(key) as client:
            if not ids:
                say(f"{await client.replay_dead()} dead webhooks are due again.")
            for name in ids:
                say(f"{(await client.replay(name)).id} is due again.")


def table(found: Sequence[DeliveryView]) -> Table:
    """One row for each."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("webhook", "event", "state", "tries", "next or last", "answer", "url"):
        shown.add_column(column, no_wrap=column != "answer")
    for one in found:
        when = (one.ended_at or one.due_at).strftime("%Y-%m-%d %H:%M:%S")
        answer = one.detail or (str(one.status) if one.status else "")
        cells = (one.id, one.event, one.state, str(one.tries), when, answer, one.url)
        shown.add_row(*(escape(cell) for cell in cells))
    return shown


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except RouterClientError as error:
        raise WebhooksError(str(error)) from None
