"""Who may run user code in this process now: everybody, or one row alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turnstile"]


class Turnstile:
    """A lock that stages share, and that a row which must be alone takes for itself; it goes first when it waits."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._inside = 0
        self._alone = False
        self._waiting = 0

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """Within the block user code may run; nobody else's if `alone`."""
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
