"""Options that many verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

Stack = Annotated[str, typer.Argument(metavar="STACK", help="A stack's name (stacks/NAME.yaml) or a path to its file.")]
StackOption = Annotated[str, typer.Option("--stack", help="A stack's name or a path to its file.")]
Model = Annotated[str | None, typer.Option("--model", help="Weights instead of the file's: repository, folder, tiny.")]
