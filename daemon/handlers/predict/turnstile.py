"""Admits user code in this process: that of all stages, or that of one suspected batch alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turnstile:
    """A shared lock for the stages' batches, exclusive for one that must be alone.

    A waiting lone batch goes before those that come later, and after those that waited while another was alone.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._inside = 0
        self._alone = False
        self._waiting = 0
        self._others = 0
        self._turn = 0

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """User code may run within the block; if `alone`, no other user code runs meanwhile."""
        with self._free:
            if alone:
                self._waiting += 1
                self._free.wait_for(lambda: not self._inside and not self._alone and not self._turn)
                self._waiting -= 1
                self._alone = True
            else:
                self._others += 1
                self._free.wait_for(lambda: not self._alone and (not self._waiting or self._turn > 0))
                self._others -= 1
                self._turn = max(0, self._turn - 1)
                self._inside += 1
        try:
            yield
        finally:
            with self._free:
                if alone:
                    self._alone, self._turn = False, self._others
                else:
                    self._inside -= 1
                self._free.notify_all()
