"""The daemon's reports: to systemd (READY, STATUS, WATCHDOG, RELOADING, STOPPING) and to the status document.

All of them come from one `ServiceState`, so systemd, MongoDB and /readyz never differ by more than seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import structlog

from components.errors import MongoUnavailable
from daemon.health.readiness import ServiceState, readiness, service_status, status_line, streams_open
from daemon.health.service_status import Owner, ServiceStatus
from daemon.supervisor.systemd import Notifier
from daemon.supervisor.timed_wait import timed_wait

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 10.0


class Reporter:
    """Reports for one daemon. `publish` writes the status document, which names the daemon's process (`owner`) and its
    HTTP address.
    """

    def __init__(
        self,
        state: Callable[[], ServiceState],
        owner: Owner,
        http: str,
        publish: Callable[[ServiceStatus], Awaitable[None]],
        notifier: Notifier,
    ) -> None:
        self._state = state
        self._owner = owner
        self._http = http
        self._publish = publish
        self._notifier = notifier
        self._changed = asyncio.Event()
        self._acted = asyncio.Event()
        self._ready_sent = False
        self._stopping = False
        self._ready: dict[str, bool] = {}

    def changed(self) -> None:
        """Something has changed: `publish_status` publishes it soon; READY is sent at once, the first time it holds.

        A daemon that stands by counts as ready.
        """
        self._changed.set()
        if self._ready_sent or self._stopping:
            return
        state = self._state()
        if streams_open(state) or state.role == "standby":
            self._ready_sent = True
            line = status_line(state, time.monotonic())
            self._notifier.ready(line)
            log.info("ready", status=line)

    def acted(self) -> None:
        """The daemon has acted on a notification: `publish_status` publishes it at once, because a client waits."""
        self._acted.set()
        self._changed.set()

    def reloading(self) -> None:
        """A reload begins; `reloaded` must follow, even if it failed."""
        if self._ready_sent:
            self._notifier.reloading()

    def reloaded(self) -> None:
        """The reload has ended."""
        if self._ready_sent and not self._stopping:
            self._notifier.ready(status_line(self._state(), time.monotonic()))
        self.changed()

    def stopping(self) -> None:
        """The daemon is stopping."""
        self._stopping = True
        self._notifier.stopping()

    async def publish_status(self) -> None:
        """Publishes the status document soon after a change, and at least every ten seconds; runs until it is
        cancelled.
        """
        published: ServiceStatus | None = None
        published_at = 0.0
        while True:
            await timed_wait(self._changed, LONGEST_PAUSE_SECONDS)
            self._changed.clear()
            self._notifier.status(status_line(self._state(), time.monotonic()))
            self._log_readiness()
            status = self._status()
            if (
                published is None
                or status.news() != published.news()
                or time.monotonic() - published_at >= LONGEST_PAUSE_SECONDS
            ):
                with suppress(MongoUnavailable):  # `Leadership` logs it
                    await self._publish(status)
                    published, published_at = status, time.monotonic()
            await timed_wait(self._acted, PAUSE_SECONDS)
            self._acted.clear()

    def _log_readiness(self) -> None:
        """Logs each listener that has become unready, with the reason, or ready again."""
        verdicts = readiness(self._state(), time.monotonic()).listeners if not self._stopping else {}
        for name, verdict in verdicts.items():
            was = self._ready.get(name)
            if was and not verdict.ready:
                log.warning("listener is not ready", listener=name, reason=verdict.reason)
            elif was is False and verdict.ready:
                log.info("listener is ready", listener=name)
        self._ready = {name: verdict.ready for name, verdict in verdicts.items()}

    async def publish_end(self) -> None:
        """Writes into the status document that the daemon has stopped."""
        with suppress(MongoUnavailable):
            await self._publish(replace(self._status(), state="stopped", reason="stopped"))

    async def feed_watchdog(self) -> None:
        """Feeds the watchdog as long as this event loop turns: a worker that hangs is replaced by its keeper."""
        interval = self._notifier.watchdog_interval
        while interval is not None:
            await asyncio.sleep(interval / 3)
            self._notifier.watchdog()

    def _status(self) -> ServiceStatus:
        return replace(service_status(self._state(), time.monotonic()), owner=self._owner, http=self._http)
