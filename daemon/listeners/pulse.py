"""The pulse of a change stream: when the server last answered, and how far behind the server's time the stream is.

Both clocks have their part. How old an event is when it arrives is the difference of two cluster times of the same
server; how long ago it arrived is measured by this process. So no two machines' clocks are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from bson.timestamp import Timestamp

ROUNDING_SECONDS: Final = 1
"""Cluster times are whole seconds: a smaller difference may be none."""

QUIET_SECONDS: Final = 3.0
"""The server answers every second, even if nothing happens; a stream that is silent for longer stands still."""


class Pulse:
    """Written by the thread of the stream, read by the reporter. Moments are seconds of the monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answered_at: float | None = None
        self._server = Timestamp(0, 0)
        self._place = Timestamp(0, 0)
        self._read_until: float | None = None

    def answered(self, server: Timestamp) -> None:
        """The server answered just now, when its cluster time was `server`."""
        self._server, self._answered_at = server, self._clock()

    def moment(self, event: Timestamp) -> float:
        """When an event happened that came with the last answer."""
        behind = self._server.time - event.time
        return (self._answered_at or self._clock()) - (behind if behind > ROUNDING_SECONDS else 0)

    def reached(self, place: Timestamp) -> None:
        """Everything that happened until this cluster time has been read."""
        self._place, self._read_until = place, self.moment(place)

    @property
    def place(self) -> str | None:
        """The cluster time that the stream has reached, for people."""
        return datetime.fromtimestamp(self._place.time, UTC).isoformat() if self._place.time else None

    @property
    def silent(self) -> float:
        """Seconds since the server last answered; 0 before the first answer."""
        return 0.0 if self._answered_at is None else max(0.0, self._clock() - self._answered_at)

    @property
    def lag(self) -> float:
        """For how many seconds it is not known what happened; 0 while the stream keeps up."""
        unread = 0.0 if self._read_until is None else self._clock() - self._read_until
        return unread if unread > QUIET_SECONDS else 0.0
