"""One line of JSON an event on standard output, ours and the libraries' alike.

The request's and the job's ids come from structlog's context variables, which `router.api` binds. Prompts,
keys and tokens are never logged.
"""

from __future__ import annotations

import logging
import sys

import structlog

from router.settings import LogFormat


def configure(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Send structlog and the standard library's logging through one formatter. Called once, at start."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    # Never with locals: among them are prompts, keys and tokens.
    traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    render: list[structlog.typing.Processor] = (
        [structlog.processors.ExceptionRenderer(traceback), structlog.processors.JSONRenderer()]
        if log_format is LogFormat.JSON
        else [structlog.dev.ConsoleRenderer()]
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # What they say at less is said by us, once and with the ids.
    for chatty in ("httpx", "httpcore", "aiosqlite", "alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
