"""How far a source of dirty keys (the change stream, a scan) is finished.

`Progress` records which stretch of its source each key came from. It gives the position up to which *everything* is
finished: the end of the contiguous prefix, never of a later stretch that finished first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Generic, TypeVar

P = TypeVar("P")


class Stretch(Generic[P]):
    """A stretch of a source: the number of its unfinished keys, and the position at its end. It begins at `since`."""

    __slots__ = ("closed", "lock", "number", "position", "since", "unfinished")

    def __init__(self, lock: threading.Lock, number: int, since: float) -> None:
        self.lock = lock  # the lock of the source's Progress, so it also identifies the source
        self.number = number
        self.unfinished = 0
        self.closed = False
        self.position: P | None = None
        self.since = since

    def finish(self, keys: int = 1) -> None:
        """So many of its keys are finished."""
        with self.lock:
            self.unfinished -= keys


class Progress(Generic[P]):
    """How far a source is finished.

    The source calls `begin()` for each key that it hands out and `close(position)` at the end of a stretch. The
    corridor calls `finish` for each key. `position()` is the end of the last stretch that is finished with all before
    it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stretches: deque[Stretch[P]] = deque()
        self._open: Stretch[P] | None = None
        self._numbers = count()
        self._last: Stretch[P] | None = None

    def begin(self, keys: int = 1, since: float | None = None) -> Stretch[P]:
        """The open stretch, now with so many more unfinished keys. `since` is when the first of the keys' rows changed
        (monotonic seconds), by default now.
        """
        with self._lock:
            if self._open is None:
                began = time.monotonic() if since is None else since
                self._open = Stretch(self._lock, next(self._numbers), began)
                self._stretches.append(self._open)
            self._open.unfinished += keys
            return self._open

    def close(self, position: P) -> None:
        """Ends the open stretch, with everything begun since the last call, at this position. If nothing was begun, an
        empty stretch moves the position on.
        """
        with self._lock:
            stretch = self._open or Stretch(self._lock, next(self._numbers), 0.0)
            if self._open is None:
                self._stretches.append(stretch)
            stretch.closed, stretch.position, self._open = True, position, None
            self._advance()

    def position(self) -> P | None:
        """The end of the contiguous finished prefix; None if no stretch is finished yet."""
        last = self.last()
        return None if last is None else last.position

    def last(self) -> Stretch[P] | None:
        """The last stretch of the contiguous finished prefix."""
        with self._lock:
            self._advance()
            return self._last

    def oldest(self) -> float | None:
        """Since when (monotonic seconds) the oldest unfinished stretch waits; None if everything is finished."""
        with self._lock:
            self._advance()
            return next((stretch.since for stretch in self._stretches if stretch.unfinished), None)

    def idle(self) -> bool:
        """Whether every key that was handed out is finished."""
        return self.oldest() is None

    def _advance(self) -> None:
        while self._stretches and self._stretches[0].closed and not self._stretches[0].unfinished:
            self._last = self._stretches.popleft()


def earliest(shares: Iterable[Progress[P]]) -> P | None:
    """The position up to which all shares of one source are finished. They are closed together, so their stretches have
    the same numbers.
    """
    ends = [share.last() for share in shares]
    done = [end for end in ends if end is not None]
    return min(done, key=lambda end: end.number).position if done and len(done) == len(ends) else None
