"""MongoRetry with MongoDB: what it refuses or does not answer is tried again until it does, and meanwhile everybody can
see why.

Whatever of pymongo's comes up is waited out: a database that is down comes back, and one that refuses (a user without
rights, a filter that it cannot parse, a full disk) is mended by a person, whom the reason reaches through status,
readiness and log. To retry is safe, because everything that is written is guarded, fenced, or the same when written
twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import stamina
from pymongo.errors import PyMongoError

from components.errors import MongoUnavailable, PredictdError

T = TypeVar("T")


class Stopping(PredictdError):
    """MongoDB did not answer, and this process has been told to stop: what was not acknowledged is done again by its
    successor.
    """


class MongoRetry:
    """Calls something until MongoDB answers; `troubles()` tells what is being waited for, and why.

    Once `stopping` is set nothing is tried again: the call raises Stopping.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._lock = threading.Lock()
        self._troubles: dict[str, str] = {}

    def __call__(self, what: str, call: Callable[[], T]) -> T:
        """The call's result. Raises Stopping, and what is not pymongo's."""

        def is_mongos(error: Exception) -> bool:
            if not isinstance(error, PyMongoError | MongoUnavailable):
                return False
            self.note(what, f"{what}: {type(error).__name__}: {error}")
            if self._stopping.is_set():
                raise Stopping(f"{what}: {error}") from error
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
        """Something waits for MongoDB, for this reason, or (None) no longer does."""
        if reason is None and what not in self._troubles:
            return
        with self._lock:
            if reason is None:
                self._troubles.pop(what, None)
            else:
                self._troubles[what] = reason

    def troubles(self) -> list[str]:
        """Why something waits at present; empty when all is well."""
        with self._lock:
            return list(self._troubles.values())
