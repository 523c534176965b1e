"""Logs: structlog on stderr, and everything that other libraries log through the same door.

stdout is never touched: structlog's own default logger would print there. Recognised text is never logged. Sets up process-wide
state once, at the start.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

LogFormat = Literal["console", "json"]


def configure_logs(log_format: LogFormat, level: str) -> None:
    """Send all logs to stderr: ``console`` lines for people, or ``json`` lines for machines."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=log_format == "json"),
    ]
    if log_format == "json":
        rendering: list[structlog.typing.Processor] = [
            # Never the values of local variables: recognised text stands in them.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    else:
        plain = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        rendering = [plain]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries: FunASR alone logs a dozen lines at INFO for each model
    logging.getLogger("voice").setLevel(level.upper())
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # a handler that cannot write prints a traceback to the stderr it cannot write to
