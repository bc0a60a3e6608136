"""Waiting for a limited time: for an event, or for the end of a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from daemon.engine import WorkerProcess


async def timed_wait(event: asyncio.Event, seconds: float | None) -> None:
    """Returns when the event is set, or after `seconds` (None: never)."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # in Python 3.11 wait_for may miss a cancellation
            await event.wait()


async def watched(process: WorkerProcess[Any], seconds: float) -> AsyncIterator[None]:
    """Yields every so many seconds while the process runs: time to look at it."""
    end = asyncio.ensure_future(process.wait())
    while not end.done():
        await asyncio.wait({end}, timeout=seconds)
        if not end.done():
            yield
