"""The clock: a wake-up call at each due time. The only user of APScheduler.

Its scheduler has only timers, in memory. `daemon.supervisor.scheduler` decides what is due, from the state in MongoDB
and by the server's clock, so a timer that is lost, early or repeated does no harm. APScheduler's job store for MongoDB
is not used, because it pickles and does not claim a due run. Nor are its cron triggers, because they skip whole days
when daylight saving time changes (decision 0023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger


def local_now() -> datetime:
    """Return the time of this machine's clock."""
    return datetime.now(UTC)


class Clock:
    """Calls `wake` with a schedule's key when its time has come. `set` replaces all times; needs a running event loop.

    `now` is the clock of these times, which may be another machine's.
    """

    def __init__(self, wake: Callable[[str], None], now: Callable[[], datetime] = local_now) -> None:
        self._wake = wake
        self._now = now
        self._scheduler = AsyncIOScheduler(timezone=UTC)

    def set(self, times: Mapping[str, datetime]) -> None:
        """Have `wake` called at these times; for a past time, at once."""
        if not self._scheduler.running:
            self._scheduler.start()
        self._scheduler.remove_all_jobs()
        ahead = local_now() - self._now()
        for key, time in times.items():
            # Without this, APScheduler drops a timer that is a second late.
            self._scheduler.add_job(self._called, DateTrigger(time + ahead), [key], misfire_grace_time=None)

    async def _called(self, key: str) -> None:
        self._wake(key)

    def close(self) -> None:
        """Forget all times."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
