"""Reads what the tunnel service wrote down: the router's side of the file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from router.contract import TunnelsView


def read_status(path: Path | None, now: datetime | None = None) -> TunnelsView:
    """The last status; without a service, or with one that is silent, its `trouble` says so."""
    if path is None:
        return TunnelsView()
    try:
        view = TunnelsView.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return TunnelsView(trouble=f"the tunnel service has written nothing yet to {path}; does it run?")
    except (OSError, ValidationError) as error:
        return TunnelsView(trouble=f"{path} cannot be read: {error}")
    if view.written_at is not None and view.silent(now or datetime.now(UTC)):
        silent = f"the tunnel service has written nothing since {view.written_at:%Y-%m-%d %H:%M:%S} UTC; is it running?"
        return view.model_copy(update={"trouble": silent})
    return view
