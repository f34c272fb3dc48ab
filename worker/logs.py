"""Every line that a worker writes, as one JSON object on stdout (or readable, for a person's eyes).

Libraries log through the standard library and land in the same stream. What they say at every start
and nobody can act on is left out here, by logger and first words, so that nothing else is hidden.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog

from worker.settings import LogFormat, LogLevel

UNWANTED = (
    # bitsandbytes looks for an optional CPU kernel that a GPU worker never uses.
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
)


class _Unwanted(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        said = str(record.msg)
        return not any(record.name == name and said.startswith(words) for name, words in UNWANTED)


def configure(level: LogLevel, form: LogFormat) -> None:
    """Set up logging for this process. Call before anything that logs is imported."""
    # The hub, transformers and diffusers draw bars on stderr unless told before their import.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form is LogFormat.JSON
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(_Unwanted())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)
    for chatty in ("httpx", "httpx2", "httpcore", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
