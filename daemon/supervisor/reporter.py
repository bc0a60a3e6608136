"""How the daemon says how it goes: to systemd (READY, STATUS, WATCHDOG, RELOADING, STOPPING) and to the status
document.

Everything said comes from one picture of the service, so what systemd, MongoDB and /readyz show never differ by more
than seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import structlog

from components.errors import MongoUnavailable
from daemon.health.readiness import ServiceState, status_document, status_line, streams_open, stuck
from daemon.supervisor.systemd import Notifier
from daemon.supervisor.timed_wait import timed_wait

__all__ = ["Reporter"]

log = structlog.get_logger(__name__)

TELL_SECONDS = 2.0
TELL_AT_LEAST_SECONDS = 10.0


class Reporter:
    """Speaks for one daemon. `about` (host, process, HTTP address) stands in every status document, which `publish`
    writes.
    """

    def __init__(
        self,
        state: Callable[[], ServiceState],
        about: Mapping[str, Any],
        publish: Callable[[Mapping[str, Any]], Awaitable[None]],
        notifier: Notifier,
    ) -> None:
        self._state = state
        self._about = dict(about)
        self._publish = publish
        self._notifier = notifier
        self._news = asyncio.Event()
        self._said_ready = False
        self._stopping = False

    def changed(self) -> None:
        """There is news: `tell` tells it in its own time, but READY is said at once, the first time it holds.

        A daemon that stands by does all that is asked of it, so it is ready too.
        """
        self._news.set()
        if self._said_ready or self._stopping:
            return
        state = self._state()
        if streams_open(state) or state.role == "standby":
            self._said_ready = True
            line = status_line(state, time.monotonic())
            self._notifier.ready(line)
            log.info("ready", status=line)

    def reloading(self) -> None:
        """A reload begins; `reloaded` must follow, whatever the verdict."""
        if self._said_ready:
            self._notifier.reloading()

    def reloaded(self) -> None:
        """The reload has ended."""
        if self._said_ready and not self._stopping:
            self._notifier.ready(status_line(self._state(), time.monotonic()))
        self.changed()

    def stopping(self) -> None:
        """The daemon is on its way out."""
        self._stopping = True
        self._notifier.stopping()

    async def tell(self) -> None:
        """Publishes the status document soon after a change, and from time to time anyway; runs until it is
        cancelled.
        """
        told: dict[str, Any] = {}
        told_at = 0.0
        while True:
            await timed_wait(self._news, TELL_AT_LEAST_SECONDS)
            self._news.clear()
            self._notifier.status(status_line(self._state(), time.monotonic()))
            document = self._document()
            if document != told or time.monotonic() - told_at >= TELL_AT_LEAST_SECONDS:
                with suppress(MongoUnavailable):  # said by who renews the lease
                    await self._publish(document)
                    told, told_at = document, time.monotonic()
            await asyncio.sleep(TELL_SECONDS)

    async def tell_the_end(self) -> None:
        """The last word in the status document."""
        with suppress(MongoUnavailable):
            await self._publish(self._document() | {"state": "stopped", "reason": "stopped"})

    async def feed_watchdog(self) -> None:
        """Feeds the watchdog, but not while a worker is there and does not move: then systemd is to start everything
        anew.
        """
        interval = self._notifier.watchdog_interval
        said = None
        while interval is not None:
            await asyncio.sleep(interval / 3)
            reason = stuck(self._state(), time.monotonic(), interval / 2)
            if reason is None:
                self._notifier.watchdog()
            elif said is None:
                log.error("the watchdog is not fed", reason=reason)
            said = reason

    def _document(self) -> dict[str, Any]:
        return status_document(self._state(), time.monotonic()) | self._about
