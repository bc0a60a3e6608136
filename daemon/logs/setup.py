"""Logs: structlog to stderr, as JSON lines or as readable text, with the standard library's loggers in the same stream.

`auto` means console on a terminal and in the systemd journal (there without colours and times, which the journal adds),
JSON elsewhere. In every line, credentials in a MongoDB URI are masked and control characters are escaped, so that a
text from a row or a peer can neither forge a line nor control a terminal.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from daemon.logs.text import clean, escaped_lines, masked

Format = Literal["auto", "json", "console"]

_TRACEBACKS = ("exception", "stack")
# At INFO or below, each of these logs what the daemon logs itself, or logs every few seconds.
_CHATTY = ("apscheduler", "asyncio", "pymongo", "uvicorn", "watchfiles", "httpx", "httpcore", "PIL")


# The key's name in service.toml
def configure(format: Format = "auto", level: str = "info", stream: TextIO | None = None) -> None:  # noqa: A002
    """Sets up both structlog and `logging` for this process; a later call replaces the earlier one."""
    stream = stream if stream is not None else sys.stderr
    journal = _is_journal(stream)
    console = format == "console" or (format == "auto" and (journal or stream.isatty()))
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.StackInfoRenderer(),
    ]
    if not (console and journal):
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    renderer: Processor = structlog.processors.JSONRenderer(default=str)
    if console:
        colors = stream.isatty() and not os.environ.get("NO_COLOR")
        renderer = structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _clean_in_console if console else _clean,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(number)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _is_journal(stream: TextIO) -> bool:
    """Whether `stream` is connected to the systemd journal: JOURNAL_STREAM holds the device and inode of that
    socket.
    """
    expected = os.environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return expected == f"{found.st_dev}:{found.st_ino}"


def _clean(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Masks and escapes every string of an event, at any depth; a traceback keeps its line breaks."""
    for key, value in event.items():
        traceback = key in _TRACEBACKS and isinstance(value, str)
        event[key] = escaped_lines(masked(value)) if traceback else clean(value)
    return event


def _clean_in_console(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """The same; no line of a traceback begins as a line of the log does, whatever the message of the error holds."""
    event = _clean(logger, method, event)
    for key in _TRACEBACKS:
        if isinstance(event.get(key), str):
            event[key] = textwrap.indent(event[key], "    ", lambda _: True)
    return event
