"""What is wrong with a request, a line a field, in words for whoever sent it."""

from __future__ import annotations

from pydantic import ValidationError


def faults(error: ValidationError) -> list[str]:
    """Each offending field and what it should be. What was sent is not quoted: it may be somebody's prompt."""
    return [
        _said(".".join(map(str, each["loc"])), each["msg"])
        for each in error.errors(include_url=False, include_input=False)
    ]


def _said(path: str, message: str) -> str:
    # What the model's own rules say names the fields already.
    message = message.removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
