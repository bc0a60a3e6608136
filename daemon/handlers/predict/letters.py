"""The dead letter of a row that failed."""

from __future__ import annotations

import traceback
from typing import Final

from components.errors import DecodeError
from daemon.handlers.predict.failures import ANYTHING, is_transient
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.records import Letter, Row
from daemon.logs.text import readable

LONGEST_MESSAGE: Final = 500
LONGEST_TRACEBACK: Final = 8000


def letter(row: Row, live: Live, stage: str, error: BaseException) -> Letter:
    """The dead letter of a row that failed with this error in this stage."""
    text = "".join(traceback.format_exception(error))  # format_exception copes with a str(error) that raises
    return Letter(
        key=row.key,
        input=row.input,
        generation=live.generation,
        version=live.version,
        stage=stage,
        type=type(error).__name__,
        message=_text(_said(error))[:LONGEST_MESSAGE],
        traceback=_ends(_text(text)),
        cause="row" if isinstance(error, DecodeError) else "transient" if is_transient(error) else "model",
    )


def _text(text: str) -> str:
    """The text without secrets, which the model may quote, and with lone surrogates escaped, which MongoDB cannot store
    and a message may quote from the row.
    """
    return readable(text)


def _ends(text: str) -> str:
    """A long traceback without its middle: its beginning and its end."""
    half = LONGEST_TRACEBACK // 2
    return text if len(text) <= LONGEST_TRACEBACK else f"{text[: half - 5]}\n...\n{text[-half:]}"


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except ANYTHING:  # an error class of the user's may fail in __str__
        return "(this error has no readable message)"
