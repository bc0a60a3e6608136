"""The clock: when the next moment of a `cron` or an `every` comes, and a wake-up call at that moment. The only user of APScheduler.

Its scheduler has timers only, in memory: what is due is decided by `daemon.scheduling` from what MongoDB remembers, by the server's
clock, so timers that were lost, came early or came twice do no harm. Its job store for MongoDB is not used: that one pickles, and has no
claim on a due run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger

from components import cron

__all__ = ["Clock", "next_cron"]

_TICK = timedelta(microseconds=1)
# A number means another day to APScheduler (0 is its Monday) than to crontab (0 is Sunday): only names pass between them.
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def local_now() -> datetime:
    """Return the time of this machine's clock."""
    return datetime.now(UTC)


class Clock:
    """Calls `wake` with a schedule's key when its time has come. `set` replaces all times; needs a running event loop.

    `now` is the clock that the times are meant by, which may be another machine's.
    """

    def __init__(self, wake: Callable[[str], None], now: Callable[[], datetime] = local_now) -> None:
        self._wake = wake
        self._now = now
        self._scheduler = AsyncIOScheduler(timezone=UTC)

    def set(self, times: Mapping[str, datetime]) -> None:
        """Have `wake` called at these times; a time that has passed means at once."""
        if not self._scheduler.running:
            self._scheduler.start()
        self._scheduler.remove_all_jobs()
        ahead = local_now() - self._now()
        for key, time in times.items():
            # Late is better than never: by default a timer that is late by a second is dropped.
            self._scheduler.add_job(self._called, DateTrigger(time + ahead), [key], misfire_grace_time=None)

    async def _called(self, key: str) -> None:
        self._wake(key)

    def close(self) -> None:
        """Forget all times."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)


def next_cron(expression: str, timezone: str, after: datetime) -> datetime | None:
    """Return the first moment after `after` that a crontab expression names in a time zone, in UTC; None where none ever comes.

    An hour that the clocks leave out in spring is made up for an hour later; one that comes twice in autumn counts once, unless the
    expression names every hour. Raises ValueError where the expression or the time zone is none.
    """
    zone = cron.zone(timezone)
    once = len(cron.parse(expression).hours) < 24
    coming = [_after(trigger, after, zone, once=once) for trigger in _triggers(expression, timezone)]
    times = [time for time in coming if time is not None]
    return min(times) if times else None


def _after(trigger: CronTrigger, after: datetime, zone: tzinfo, *, once: bool) -> datetime | None:
    """Return the trigger's first moment after `after`, in UTC."""
    time = after
    while True:
        found: datetime | None = trigger.get_next_fire_time(time, time + _TICK)
        if found is None:
            return None
        time = found.astimezone(UTC)
        if not once or time.astimezone(zone).fold == 0:
            return time


@lru_cache(maxsize=256)
def _triggers(expression: str, timezone: str) -> tuple[CronTrigger, ...]:
    """Return the triggers of an expression, two where a day of the month or a day of the week will do."""
    said = cron.parse(expression)
    days = ",".join(map(str, sorted(said.days)))
    weekdays = ",".join(_WEEKDAYS[day] for day in sorted(said.weekdays))
    pairs = [(days, "*"), ("*", weekdays)] if said.either else [(days, weekdays)]
    return tuple(
        CronTrigger(
            month=",".join(map(str, sorted(said.months))),
            day=day,
            day_of_week=weekday,
            hour=",".join(map(str, sorted(said.hours))),
            minute=",".join(map(str, sorted(said.minutes))),
            timezone=cron.zone(timezone),
        )
        for day, weekday in pairs
    )
