"""Signals as a context manager, for a process that runs an asyncio event loop.

The first SIGTERM or SIGINT asks to stop, the second one to leave at once. SIGHUP asks to read the
configuration again. The callbacks run in the event loop, so they may touch what the loop owns. The
handlers from before are restored at the end.

A daemon that belongs to another process (`connect("embedded")`) is asked to stop by `stop_with_parent` as well.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_STOP = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handled(stop: Callable[[str], None], leave: Callable[[str], None], reload: Callable[[], object]) -> Iterator[None]:
    """Within the block: the first SIGTERM or SIGINT calls `stop`, each later one `leave` (both with its name), SIGHUP
    calls `reload`.
    """
    loop = asyncio.get_running_loop()
    asked = False

    def on_stop(number: signal.Signals) -> None:
        nonlocal asked
        first, asked = not asked, True
        (stop if first else leave)(number.name)

    before = {number: signal.getsignal(number) for number in (*_STOP, signal.SIGHUP)}
    for number in _STOP:
        loop.add_signal_handler(number, on_stop, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def stop_with_parent() -> None:
    """Asks this process to stop, as SIGTERM does, at the end of its standard input: the process that
    held the other end has ended.
    """

    def watch() -> None:
        with suppress(OSError):  # a closed standard input has ended, too
            while os.read(sys.stdin.fileno(), 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
