"""Admits user code in this process: that of all stages, or that of one row alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turnstile"]


class Turnstile:
    """A shared lock for the stages' batches, exclusive for a row that must be alone; a waiting lone row goes first."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._inside = 0
        self._alone = False
        self._waiting = 0

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """User code may run within the block; if `alone`, no other user code runs meanwhile."""
        with self._free:
            if alone:
                self._waiting += 1
                self._free.wait_for(lambda: not self._inside and not self._alone)
                self._waiting -= 1
                self._alone = True
            else:
                self._free.wait_for(lambda: not self._alone and not self._waiting)
                self._inside += 1
        try:
            yield
        finally:
            with self._free:
                if alone:
                    self._alone = False
                else:
                    self._inside -= 1
                self._free.notify_all()
