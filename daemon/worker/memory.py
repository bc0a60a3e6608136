"""The limit on a worker's memory: a model that leaks costs a start now and then, not the host's memory.

What counts is what ends with the process, and with those that preprocess its rows: pages that it shares with the
nursery do not count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from daemon.handlers.predict.processes import FORKED

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 2.0
FIRST_SECONDS: Final = 15.0
"""A worker lives at least so long, so one that needs more than its limit from the start still predicts mostly."""


def _sizes(pid: int | str = "self") -> dict[str, int]:
    """The sizes of a process's memory by name, in bytes. Raises OSError."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in map(str.split, lines)}


def _private(sizes: Mapping[str, int]) -> int:
    """What no other process shares."""
    return sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0)


class MemoryLimit:
    """Says when the worker is to be replaced; `limit` is in bytes, 0 for none."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._nursery = 0
        """So much of its memory is not its own, but was there when it was forked."""
        with suppress(OSError):
            own = _sizes()
            self._nursery = max(0, own.get("Anonymous", 0) - own.get("Private_Dirty", 0))
        self._next = time.monotonic() + FIRST_SECONDS

    def exceeded(self) -> str | None:
        """Why the worker is to be replaced; None if it is not. Looks at most every two seconds."""
        now = time.monotonic()
        if not self.limit or now < self._next:
            return None
        self._next = now + LOOK_SECONDS
        try:
            used = self._used()
        except OSError as error:
            log.warning("the worker's memory cannot be read; it has no limit", reason=str(error))
            self.limit = 0
            return None
        if used <= self.limit:
            return None
        return f"it uses {used >> 20} MiB of memory, more than limits.worker_memory ({self.limit >> 20} MiB)"

    def _used(self) -> int:
        """Bytes of this process and of those that preprocess its rows, with which it shares what it has loaded."""
        own, apart, pids = _sizes(), 0, tuple(FORKED)
        for pid in pids:
            with suppress(OSError):  # it has ended
                apart += _private(_sizes(pid))
        whole = own.get("Anonymous", 0) - self._nursery if pids else 0
        return max(_private(own), whole) + apart
