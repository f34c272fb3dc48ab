"""Verbs about what is kept of a stack: `letterpress state | bundle`."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli.options import Stack

state = typer.Typer(no_args_is_help=True, help="Where the stack's state is kept.")
bundle = typer.Typer(no_args_is_help=True, help="The stack's keys and placement, sealed, for a second operator.")


@state.command("move")
def state_move(stack: Stack = "local") -> None:
    """Bring the stack's state to where its file says now (`state`), or LETTERPRESS_STATE."""
    from infra.state.safekeeping import move_state

    move_state(stack)


@bundle.command("push")
def bundle_push(stack: Stack = "local") -> None:
    """Seal the stack's keys and placement into its backend. A deploy does it by itself where others can reach that."""
    from infra.state.safekeeping import bundle_of

    bundle_of(stack).push()


@bundle.command("pull")
def bundle_pull(
    stack: Stack = "local",
    replace: Annotated[bool, typer.Option("--replace", help="Theirs counts; ours is set aside.")] = False,
) -> None:
    """Take the stack's keys and placement over from its backend, with the passphrase that was handed to you."""
    from infra.state.safekeeping import take_over

    take_over(stack, replace=replace)


@bundle.command("remove")
def bundle_remove(stack: Stack = "local") -> None:
    """Remove the bundle from the backend; what lies here stays."""
    from infra.state.safekeeping import bundle_of

    bundle_of(stack).remove()
