"""The turn of a thread that makes many short calls of Python.

Libraries let go of the interpreter's lock in each call, however short. If two threads make such calls, the lock goes to
and fro between two cores for nearly every row, and each time the interpreter's own data has to follow. So one thread
at a time preprocesses rows or finishes outputs, a chunk of them; what computes for long, without the lock, takes no
turn.

A turn is no guarantee. Who has waited for `WAIT_SECONDS` goes on without it, and code that takes long, or waits for
something, is given none.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

WAIT_SECONDS: Final = 0.02
FEWEST_ROWS: Final = 16
"""Fewer rows cost less than the wait for a turn may take."""


class _Lock:
    """A lock that goes to whoever has waited longest: otherwise a loop that takes it again at once would keep it."""

    def __init__(self) -> None:
        self.free()

    def free(self) -> None:
        """Nobody has it."""
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def acquire(self, seconds: float) -> bool:
        """Return whether it was taken within so many seconds."""
        with self._guard:
            if not self._taken:
                self._taken = True
                return True
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        if mine.acquire(timeout=seconds):
            return True
        with self._guard:
            if mine in self._waiting:
                self._waiting.remove(mine)
                return False
        return True  # it was given at the last moment

    def release(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


_LOCK: Final = _Lock()
"""Of this process, which has one interpreter."""
os.register_at_fork(after_in_child=_LOCK.free)  # who holds it did not come along


class Turn:
    """The turns of one thread's code."""

    def __init__(self) -> None:
        self._long = False
        """Whether the code took longer than others would wait for it, the last time."""

    @contextmanager
    def taken(self, rows: int) -> Iterator[None]:
        """The context of a chunk of so many rows."""
        if rows < FEWEST_ROWS:
            yield
            return
        mine = not self._long and _LOCK.acquire(WAIT_SECONDS)
        began = time.perf_counter()
        try:
            yield
        finally:
            if mine:
                _LOCK.release()
            self._long = time.perf_counter() - began > WAIT_SECONDS
