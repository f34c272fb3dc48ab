"""The `letterpress` command: a few lines for each verb, thin over the package.

Whatever is slow to import (Pulumi, gRPC) is imported by the verb that needs it, so that `letterpress
endpoint` answers at once. Errors that are meant for people end a command with one message and code 1.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from infra.cli import asking, router, state
from infra.cli.options import Model, Stack, StackOption
from infra.errors import InfraError

COMMANDS = "letterpress.commands"
"""Verbs of the other packages, each registered by its owner (pyproject.toml): import rules hold for them too."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Runs a stack.")

app.add_typer(router.webhooks, name="webhooks")
app.add_typer(router.keys, name="keys")
app.add_typer(router.db, name="db")
app.add_typer(state.state, name="state")
app.add_typer(state.bundle, name="bundle")
emulate = typer.Typer(no_args_is_help=True, help="Providers that cost nothing, to try stacks that rent machines.")
app.add_typer(emulate, name="emulate")
app.command("generate")(asking.generate)
app.command("batch")(asking.batch)


@app.command()
def setup(
    tests: Annotated[bool, typer.Option("--tests", help="Also the servers that only the tests start.")] = False,
) -> None:
    """Install what this machine lacks: the Pulumi engine, nginx."""
    from infra.lifecycle import ensure_tools

    ensure_tools()
    if tests:
        from infra.setup.for_tests import ensure_test_servers
        from infra.view.console import say

        ensure_test_servers(say)


@app.command()
def deploy(
    stack: Stack = "local",
    model: Model = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Rent what is described without asking.")] = False,
) -> None:
    """Bring the stack up as described, repair what died, and wait until it makes an image."""
    from infra.lifecycle import deploy as run

    run(stack, model, yes=yes)


@app.command()
def preview(stack: Stack = "local", model: Model = None) -> None:
    """Show what a deploy would change."""
    from infra.lifecycle import preview as run

    run(stack, model)


@app.command()
def plan(
    stack: Stack = "local",
    offers: Annotated[Path | None, typer.Option("--offers", help="A file of offers, instead of asking.")] = None,
    save_offers: Annotated[Path | None, typer.Option("--save-offers", help="Keep the offers for another day.")] = None,
    images_per_month: Annotated[int | None, typer.Option("--images-per-month", min=1, help="Of each pool.")] = None,
    size: Annotated[str, typer.Option("--size", help="Of the image that costs are compared for.")] = "1024x1024",
    steps: Annotated[int, typer.Option("--steps", min=1, max=100)] = 25,
    json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """What the stack would cost: offers of now, dollars an image, and the hosted API beside them."""
    from infra.costs.plan import Question, show

    show(Question(stack, offers, images_per_month, size, steps), as_json=json, save=save_offers)


@app.command()
def watch(
    stack: Stack = "local",
    every: Annotated[float, typer.Option("--every", min=1, help="Seconds between two looks.")] = 15.0,
    once: Annotated[bool, typer.Option("--once", help="Look, decide and act one time.")] = False,
    install: Annotated[bool, typer.Option("--install", help="Have systemd do it from now on.")] = False,
    uninstall: Annotated[bool, typer.Option("--uninstall", help="Have it do so no more.")] = False,
) -> None:
    """Keep the stack's machines alive, as cheap as they can be, and as many as its backlog wants."""
    from infra.watch.run import install as put
    from infra.watch.run import uninstall as take
    from infra.watch.run import watch as run

    if install or uninstall:
        (put if install else take)(stack)
        return
    run(stack, every, 1 if once else None)


@app.command()
def destroy(
    stack: Stack = "local",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Fail where a minimum run time is not over.")] = False,
) -> None:
    """End everything that the stack started, and only that."""
    from infra.lifecycle import destroy as run

    run(stack, waits=not no_wait)


@app.command()
def sweep(
    stack: Stack = "local",
    delete: Annotated[list[str] | None, typer.Option("--delete", metavar="NAME", help="May be repeated.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Delete all that are found.")] = False,
) -> None:
    """List what is rented in the stack's name and is in no state; delete what it is told to."""
    from infra.sweep import sweep as run

    run(stack, delete or [], every=every)


@emulate.command("spheron")
def emulate_spheron(
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0: any that is free.")] = 0,
    boot: Annotated[float, typer.Option("--boot", min=0, help="Seconds that a machine takes to boot.")] = 5.0,
    minimum: Annotated[int, typer.Option("--minimum", min=0, help="Minutes of minimum run time.")] = 0,
) -> None:
    """Spheron without an account: offers, machines and a bill, all of them made up."""
    from infra.emulate.run import spheron

    spheron(port, boot, minimum)


@app.command()
def status(stack: Stack = "local") -> None:
    """A table: resource, state, since, url, pool, jobs."""
    from infra.deployment import Deployment
    from infra.view import console, observe

    rows = asyncio.run(observe.status(Deployment.remembered(stack)))
    console.show_status(rows)


@app.command()
def logs(
    stack: Stack = "local",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines of each process.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they write.")] = False,
) -> None:
    """The last lines of every process of the stack."""
    from infra.deployment import Deployment
    from infra.view import logs as logbook

    asyncio.run(logbook.show(Deployment.remembered(stack), lines, follow=follow))


@app.command()
def doctor(
    stack: Stack = "local",
    model: Model = None,
    json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Also ask the provider's API, and say what changed.")] = False,
) -> None:
    """Look for what would make a deploy fail, and say what to do; changes nothing. Exit code 1 if anything would."""
    from infra.doctor.command import run

    sys.exit(run(stack, model, as_json=json, live=live))


@app.command()
def admin(stack: Stack = "local") -> None:
    """See that the admin console answers, and print its address; to a router elsewhere a tunnel is held open."""
    from infra.admin.opening import open_admin

    open_admin(stack)


@app.command()
def endpoint(
    json: Annotated[bool, typer.Option("--json", help="For scripts; includes the keys themselves.")] = False,
    stack: Annotated[str, typer.Option("--stack", help="A stack's name or a path to its file.")] = "local",
) -> None:
    """Where the stack answers."""
    from infra.deployment import Deployment
    from infra.view import console

    deployment = Deployment.remembered(stack)
    if json:
        typer.echo(deployment.endpoint.as_json())
    else:
        console.show_endpoint(deployment)


@app.command()
def tunnels(stack: Stack = "local") -> None:
    """A table: machine, state, since, worker, way, reason. (The service itself: python -m router.tunnels)"""
    from infra.admin.tunnels import show
    from infra.deployment import Deployment

    asyncio.run(show(Deployment.remembered(stack)))


@app.command("ssh-key")
def ssh_key(stack: StackOption = "local") -> None:
    """The line for authorized_keys of machines that you have already: the stack's own key, made now if need be."""
    from infra.deployment import stack_name
    from infra.paths import StackPaths
    from infra.provider.site import Site

    paths = StackPaths.of(stack_name(stack))
    paths.create()
    typer.echo(Site(paths, os.environ).public_key())


@app.command("forget-host-key")
def forget_host_key(
    machine: Annotated[str, typer.Argument(metavar="MACHINE", help="As the message named it.")],
    stack: StackOption = "local",
) -> None:
    """Take the next host key of a machine that you made anew; the one that was met first counts no more."""
    from infra.deployment import stack_name
    from infra.paths import StackPaths
    from infra.ssh.pins import Pins
    from infra.view.console import say

    Pins(StackPaths.of(stack_name(stack)).known_hosts).forget(machine)
    say(f"The host key of {machine} is forgotten; the next deploy pins the one that it meets.")


@app.command()
def consume() -> None:
    """Drive workers for routers that share a Redis (set by LETTERPRESS_ROUTER_*; docs/architecture.md)."""
    os.execv(sys.executable, [sys.executable, "-m", "router.consume"])  # noqa: S606 - this very interpreter


@app.command()
def schema() -> None:
    """The JSON Schema of stack files."""
    from infra.stack import json_schema

    typer.echo(json_schema(), nl=False)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a check mark is no reason to fail
    try:
        for command in sorted(entry_points(group=COMMANDS)):
            with suppress(ModuleNotFoundError):  # its package's extra is not installed
                app.add_typer(command.load(), name=command.name)
        app()
    except KeyboardInterrupt:  # while it still loads; later each command says what it stopped
        raise SystemExit(asking.INTERRUPTED) from None
    except InfraError as error:
        _fail(str(error))
    except PermissionError as error:
        _fail(
            f"{error.filename}: {error.strerror}; a stack belongs to the user who deployed it, so do this as that user"
        )
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in {"infra", "router", "worker"}:
            raise
        _fail(f"this command needs {error.name}, which is not installed here; install letterpress[infra]")


def _fail(message: str) -> NoReturn:
    # Without the console: it needs what a machine with the worker's extra alone lacks.
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)
    sys.exit(1)
