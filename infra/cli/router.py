"""Verbs about a router that runs: `letterpress webhooks | keys | db`."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import StackOption

if TYPE_CHECKING:
    from router.contract import KeyLimitsView

webhooks = typer.Typer(no_args_is_help=True, help="What is told to the receivers of webhooks.")
keys = typer.Typer(no_args_is_help=True, help="Who may ask for images, how much, and what they have used.")
db = typer.Typer(no_args_is_help=True, help="The router's database.")

DATABASE_URL = "LETTERPRESS_ROUTER_DATABASE_URL"

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.")]
PerMinute = Annotated[int | None, typer.Option("--per-minute", min=1, help="Requests that create jobs.")]
Running = Annotated[int | None, typer.Option("--running", min=1, help="Jobs at once; more wait.")]
Waiting = Annotated[int | None, typer.Option("--waiting", min=0, help="Jobs that wait in a pool; more are refused.")]
Pools = Annotated[list[str] | None, typer.Option("--pool", help="The only pool that it may use; may be repeated.")]


@webhooks.command("list")
def webhooks_list(
    stack: StackOption = "local",
    state: Annotated[str | None, typer.Option(help="Only those: pending, delivered, dead.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 50,
) -> None:
    """Webhooks on their way, delivered and dead; the newest first."""
    from infra.admin.webhooks import show
    from infra.deployment import Deployment
    from router.contract import DeliveryState

    if state is not None and state not in list(DeliveryState):
        raise typer.BadParameter(f"should be one of {', '.join(DeliveryState)}", param_hint="--state")
    asyncio.run(show(Deployment.remembered(stack), DeliveryState(state) if state else None, limit))


@webhooks.command("replay")
def webhooks_replay(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[WEBHOOK]...", help="As `list` names them.")] = None,
    stack: StackOption = "local",
    all_dead: Annotated[bool, typer.Option("--all-dead", help="All that were given up.")] = False,
) -> None:
    """Deliver again: also what was delivered, and to a URL that had answered 410."""
    from infra.admin.webhooks import replay
    from infra.deployment import Deployment

    if bool(ids) is all_dead:
        raise typer.BadParameter("name some webhooks, or say --all-dead", param_hint="WEBHOOK")
    asyncio.run(replay(Deployment.remembered(stack), ids or []))


@keys.command("create")
def keys_create(
    name: KeyName,
    stack: StackOption = "local",
    per_minute: PerMinute = None,
    running: Running = None,
    waiting: Waiting = None,
    pools: Pools = None,
) -> None:
    """Make an API key and print it, this once."""
    from infra.admin.keys import create
    from infra.deployment import Deployment

    limits = _limits(per_minute, running, waiting, pools)
    asyncio.run(create(Deployment.remembered(stack), name, limits))


@keys.command("list")
def keys_list(stack: StackOption = "local") -> None:
    """All keys, revoked ones included, and their limits."""
    from infra.admin.keys import show
    from infra.deployment import Deployment

    asyncio.run(show(Deployment.remembered(stack)))


@keys.command("limit")
def keys_limit(
    name: KeyName,
    stack: StackOption = "local",
    per_minute: PerMinute = None,
    running: Running = None,
    waiting: Waiting = None,
    pools: Pools = None,
) -> None:
    """Give a key these limits, in place of those that it had; what is left out is not limited."""
    from infra.admin.keys import limit
    from infra.deployment import Deployment

    limits = _limits(per_minute, running, waiting, pools)
    asyncio.run(limit(Deployment.remembered(stack), name, limits))


@keys.command("revoke")
def keys_revoke(name: KeyName, stack: StackOption = "local") -> None:
    """Let nobody in with it from now on."""
    from infra.admin.keys import revoke
    from infra.deployment import Deployment

    asyncio.run(revoke(Deployment.remembered(stack), name))


@keys.command("usage")
def keys_usage(
    name: KeyName,
    stack: StackOption = "local",
    since: Annotated[str | None, typer.Option(metavar="DATE", help="From this day on; the last 30 otherwise.")] = None,
) -> None:
    """Images, megapixels and GPU seconds by day."""
    from infra.admin.keys import usage
    from infra.deployment import Deployment

    try:
        day = date.fromisoformat(since) if since else None
    except ValueError:
        raise typer.BadParameter("should be a date, as in 2026-11-24", param_hint="--since") from None
    asyncio.run(usage(Deployment.remembered(stack), name, day))


def _limits(per_minute: int | None, running: int | None, waiting: int | None, pools: list[str] | None) -> KeyLimitsView:
    from router.contract import KeyLimitsView

    try:
        return KeyLimitsView(per_minute=per_minute, running=running, waiting=waiting, pools=pools or None)
    except ValueError:
        raise typer.BadParameter("is no pool's name", param_hint="--pool") from None


@db.command("upgrade")
def db_upgrade(stack: StackOption = "local") -> None:
    """Bring the schema of the router's database up to date, before a router does when it starts."""
    _database(stack, "upgrade")


@db.command("backup")
def db_backup(
    file: Annotated[Path, typer.Argument(help="Where to; what is there is replaced once the backup is good.")],
    stack: StackOption = "local",
) -> None:
    """Back the router's database up, while it runs. SQLite: a database. PostgreSQL: an archive for pg_restore."""
    _database(stack, "backup", str(file.resolve()))


def _database(stack: str, *verb: str) -> None:
    """By a program of the router's; LETTERPRESS_ROUTER_DATABASE_URL names another database than the stack's own."""
    from infra.deployment import Deployment, stack_name
    from infra.errors import InfraError
    from infra.paths import StackPaths

    paths = StackPaths.of(stack_name(stack))
    deployment = Deployment.kept(paths)
    told = deployment.database if deployment else {}
    if deployment and deployment.description.router.host and not told.keys() | os.environ.keys() >= {DATABASE_URL}:
        raise InfraError(
            f"the router's database is on {deployment.description.router.host.address}; do it there, as root:\n    "
            + deployment.place().on_database(*verb)
        )
    folder = paths.router / "data"
    environment = {"LETTERPRESS_ROUTER_DATA_DIR": str(folder), **told, **os.environ}
    os.execve(sys.executable, [sys.executable, "-m", "router.db", *verb], environment)  # noqa: S606 - this very interpreter
