"""The driver's errors as one short sentence: the one place that words them.

The driver's own text may go on for thousands of characters, with the reply, the topology and its timeouts.
What follows from an error is decided where it is caught: `mongo_retry`, `daemon.listeners.change_stream`.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
)

from components.errors import PredictdError
from daemon.logs.text import brief, masked

_AUTHENTICATION: Final = {
    13: "the user lacks a right: grant readWrite on the database",
    18: "user name or password is wrong: see mongo.uri",
}
_FINAL: Final = frozenset({2, 9, 13, 14, 18, 121})  # bad values and types, rights, a validator of the collection
_REST: Final = re.compile(
    r", (?:Timeout|full error): .*|,? ?\(configured timeouts: [^)]*\)"
    r"|error processing query: .*planner returned error :: caused by :: ",  # the query, before the cause
    re.DOTALL,
)


def sentence(error: Exception) -> str:
    """What happened, on one line that a person can act on, without credentials."""
    text = masked(_REST.sub("", str(error)))
    if isinstance(error, PredictdError):
        return brief(text)
    if isinstance(error, ServerSelectionTimeoutError):
        return brief(f"no primary answers: {text}")
    if isinstance(error, NetworkTimeout):
        return brief(f"no answer in time: {text}")
    if isinstance(error, OperationFailure):
        first = _first_refusal(error)
        code = first.get("code", error.code)
        message = _AUTHENTICATION.get(code or 0) or masked(_REST.sub("", str(first.get("errmsg") or text)))
        known = f" (code {code})" if code is not None else ""
        return f"{brief(f'MongoDB refuses: {message}')}{known}"
    if isinstance(error, AutoReconnect) and not isinstance(error, NotPrimaryError):
        return brief(f"the connection broke: {text}")
    return brief(f"{type(error).__name__}: {text}")


def final(error: Exception) -> bool:
    """Whether the server would refuse the same again."""
    return isinstance(error, OperationFailure) and _first_refusal(error).get("code", error.code) in _FINAL


def _first_refusal(error: OperationFailure) -> dict[str, Any]:
    details: dict[str, Any] = dict(error.details or {})
    if isinstance(error, BulkWriteError):
        refusals = details.get("writeErrors") or details.get("writeConcernErrors") or [{}]
        return dict(refusals[0])
    return details
