"""Waits for what an `async def` returns. Each thread has an event loop of its own, as long as the thread lives."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_own = threading.local()
_elsewhere = ThreadPoolExecutor(1, "predictd-await")
"""For a thread whose event loop runs already, such as a notebook's."""


def _in_fork() -> None:
    """Begins anew: a loop of the parent's would take the parent's events, and its other threads are missing."""
    global _own, _elsewhere
    _own, _elsewhere = threading.local(), ThreadPoolExecutor(1, "predictd-await")


os.register_at_fork(after_in_child=_in_fork)


def awaited(value: Any) -> Any:
    """Return what an awaitable gives, any other value as it is."""
    if not hasattr(type(value), "__await__"):
        return value
    import asyncio  # imported here, because most processes never need it

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(value)
    return _elsewhere.submit(_run, value).result()


def _run(value: Awaitable[Any]) -> Any:
    import asyncio

    async def waiting() -> Any:
        return await value

    if not hasattr(_own, "runner"):
        _own.runner = asyncio.Runner()
    return _own.runner.run(waiting())
