"""The limit on a worker's memory: a model that leaks costs a start now and then, not the host's memory.

What counts is what ends with the process: pages that it shares with the nursery do not count.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 2.0
FIRST_SECONDS: Final = 15.0
"""A worker lives at least so long, so one that needs more than its limit from the start still predicts mostly."""

_SMAPS: Final = Path("/proc/self/smaps_rollup")


def private_bytes() -> int:
    """The memory of this process that no other shares, in bytes."""
    lines = (line.split() for line in _SMAPS.read_text(encoding="ascii").splitlines()[1:])
    return sum(int(size) * 1024 for name, size, *_ in lines if name in ("Private_Clean:", "Private_Dirty:"))


class MemoryLimit:
    """Says when the worker is to be replaced; `limit` is in bytes, 0 for none."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._next = time.monotonic() + FIRST_SECONDS

    def exceeded(self) -> str | None:
        """Why the worker is to be replaced; None if it is not. Looks at most every two seconds."""
        now = time.monotonic()
        if not self.limit or now < self._next:
            return None
        self._next = now + LOOK_SECONDS
        try:
            used = private_bytes()
        except OSError as error:
            log.warning("the worker's memory cannot be read; it has no limit", reason=str(error))
            self.limit = 0
            return None
        if used <= self.limit:
            return None
        return f"it uses {used >> 20} MiB of memory, more than limits.worker_memory ({self.limit >> 20} MiB)"
