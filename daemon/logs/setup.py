"""Logs: structlog to stderr, as JSON lines or as readable text, with the standard library's loggers in the same stream.

`auto` means console on a terminal and in the systemd journal (there without colours and times, which the journal adds),
JSON elsewhere. In every line, credentials in a MongoDB URI are masked and control characters are escaped, so that a
text from a row or a peer can neither forge a line nor control a terminal.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from daemon.logs.text import escaped, masked

__all__ = ["configure"]

Format = Literal["auto", "json", "console"]

_CONTROL_IN_TRACEBACK = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
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
                _clean,
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
        if key in _TRACEBACKS and isinstance(value, str):
            event[key] = _CONTROL_IN_TRACEBACK.sub(
                lambda match: match.group().encode("unicode_escape").decode(), masked(value)
            )
        else:
            event[key] = _clean_value(value)
    return event


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(masked(value))
    if isinstance(value, Mapping):
        return {escaped(str(key)): _clean_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean_value(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return escaped(masked(str(value)))
