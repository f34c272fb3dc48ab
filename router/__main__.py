"""`python -m router`: read the environment, serve until told to stop."""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop

from router.allocator import keep_freed_memory
from router.errors import RouterError
from router.logs import configure
from router.serve import serve
from router.settings import SettingsError, read_settings

SWITCH_S = 0.0005


def main() -> int:
    """The exit status: 0 after a stop that was asked for, 78 (EX_CONFIG) when the settings must change,
    69 (EX_UNAVAILABLE) when something that it stands on is not there."""
    os.umask(0o077)
    keep_freed_memory()
    # The loop shares the interpreter with the threads that do SQLite's transactions, hash images and write them. By
    # default it may wait 5 ms for each of them to let go, several times a request.
    sys.setswitchinterval(SWITCH_S)
    try:
        settings = read_settings()
        configure(settings.log_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except RouterError as error:
        print(f"the router cannot start:\n{error}", file=sys.stderr)
        return os.EX_CONFIG if isinstance(error, SettingsError) else os.EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
