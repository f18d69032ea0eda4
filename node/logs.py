# SPDX-License-Identifier: GPL-3.0-or-later
"""Structured logs on standard error: lines for people or one JSON object per line."""

import logging
import sys
from contextlib import suppress
from typing import Literal

import structlog


class _Log(structlog.PrintLogger):
    """Writes lines where it can: a node with a full disk under its log still votes and serves, and goes on when there is space."""

    def msg(self, message: str) -> None:
        """Write a line, or lose it."""
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def configure_logs(level: str, form: Literal["console", "json"]) -> None:
    """Set up logging for the process. Records, keys and passphrases are never logged; identifiers and sizes are."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Log(sys.stderr),
    )
