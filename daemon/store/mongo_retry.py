"""MongoRetry: repeats a call until MongoDB answers, and publishes the reason meanwhile.

Every PyMongoError is retried until MongoDB answers. A database that is down comes back. One that refuses (a user
without rights, a filter that it cannot parse, a full disk) needs an administrator, who finds the reason in status,
readiness and log. A retry is safe, because every write is guarded, fenced or idempotent. If this process cannot open
another descriptor, because a model holds them all or has lowered the limit, waiting does not help: it must end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import stamina
import structlog
from pymongo.errors import PyMongoError
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from components.errors import MongoUnavailable, PredictdError
from daemon.store.driver_errors import sentence

log = structlog.get_logger(__name__)

T = TypeVar("T")


def _retried(details: RetryDetails) -> None:
    """Logs a retry. The library's own line would show the driver's reply: thousands of bytes, and what rows hold."""
    log.warning("tried again", attempt=details.retry_num, reason=sentence(details.caused_by))


set_on_retry_hooks([_retried])


class Stopping(PredictdError):
    """MongoDB did not answer and this process must stop; its successor repeats what was not acknowledged."""


class MongoRetry:
    """Repeats a call until MongoDB answers. A call is named: "LISTENER.PART", or "PART" if all listeners share it;
    `trouble` returns why some wait.

    Once `stopping` is set, nothing is retried: the call raises Stopping.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._lock = threading.Lock()
        self._troubles: dict[str, str] = {}

    def __call__(self, what: str, call: Callable[[], T]) -> T:
        """The call's result. Raises Stopping, OSError if this process has no descriptor left, and every error that is
        not a PyMongoError.
        """

        def is_mongos(error: Exception) -> bool:
            if not isinstance(error, PyMongoError | MongoUnavailable):
                return False
            self.note(what, sentence(error))
            os.close(os.open(os.devnull, os.O_RDONLY))  # raises if this process has no descriptor left
            if self._stopping.is_set():
                raise Stopping(f"{what}: {sentence(error)}") from error
            return True

        retries: Any = stamina.retry_context(
            on=is_mongos, attempts=None, timeout=None, wait_initial=0.05, wait_max=5.0, wait_jitter=0.5
        )
        for attempt in retries:
            with attempt:
                result = call()
        self.note(what, None)
        return result

    def note(self, what: str, reason: str | None) -> None:
        """Notes that `what` waits for MongoDB for this reason; None: it no longer waits."""
        if reason is None and what not in self._troubles:
            return
        with self._lock:
            if reason is None:
                self._troubles.pop(what, None)
            else:
                self._troubles[what] = reason

    def trouble(self, owner: str = "") -> str | None:
        """Why the calls of a listener wait at present, each reason once; without a name, those that all share."""
        with self._lock:
            reasons = [reason for what, reason in self._troubles.items() if what.rpartition(".")[0] == owner]
        return "; ".join(dict.fromkeys(reasons)) or None
