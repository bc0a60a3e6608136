"""Waiting for an event for a limited time."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def timed_wait(event: asyncio.Event, seconds: float | None) -> None:
    """Returns when the event is set, or after `seconds` (None: never)."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # in Python 3.11 wait_for may miss a cancellation
            await event.wait()
