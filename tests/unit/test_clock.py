"""The clock: crontab's times as APScheduler computes them, and timers by a clock that is not this machine's."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from daemon.listeners.clock import Clock, local_now, next_cron


def following(expression: str, zone: str, after: datetime, count: int) -> list[datetime]:
    """The next moments, one after another."""
    found = []
    for _ in range(count):
        moment = next_cron(expression, zone, after)
        assert moment is not None
        found.append(moment)
        after = moment
    return found


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "weekday"),
    [("0 3 * * 0", 6), ("0 3 * * 7", 6), ("0 3 * * 1", 0), ("0 3 * * 6", 5), ("0 3 * * sun", 6), ("0 3 * * wed", 2)],
)
def test_a_number_of_a_weekday_is_crontab_s(text: str, weekday: int) -> None:
    """Sunday is 0 or 7, and not Monday as APScheduler has it."""
    moments = following(text, "UTC", at(2026, 1, 1), 3)
    assert {moment.weekday() for moment in moments} == {weekday}
    assert {(moment.hour, moment.minute, moment.second) for moment in moments} == {(3, 0, 0)}
    assert moments[1] - moments[0] == timedelta(days=7)


def test_a_range_of_weekdays_over_the_end_of_the_week() -> None:
    assert [each.strftime("%a") for each in following("0 0 * * 5-7", "UTC", at(2026, 1, 1), 4)] == [
        "Fri",
        "Sat",
        "Sun",
        "Fri",
    ]


def test_a_day_of_the_month_or_one_of_the_week() -> None:
    """Where both are named, crontab takes either."""
    found = following("0 0 13 * fri", "UTC", at(2026, 1, 1), 5)
    assert [each.day for each in found] == [2, 9, 13, 16, 23]


def test_the_moment_itself_is_over() -> None:
    assert next_cron("0 3 * * *", "UTC", at(2026, 1, 1, 3)) == at(2026, 1, 2, 3)
    assert next_cron("0 3 * * *", "UTC", at(2026, 1, 1, 2, 59, 59)) == at(2026, 1, 1, 3)


def test_a_time_zone_counts() -> None:
    """Three in the morning in Berlin is another moment in winter than in summer, and than in Tokyo."""
    assert next_cron("0 3 * * *", "Europe/Berlin", at(2026, 1, 1, 12)) == at(2026, 1, 2, 2)
    assert next_cron("0 3 * * *", "Europe/Berlin", at(2026, 7, 1, 12)) == at(2026, 7, 2, 1)
    assert next_cron("0 3 * * *", "Asia/Tokyo", at(2026, 1, 1, 12)) == at(2026, 1, 1, 18)
    assert next_cron("0 0 * * mon", "Asia/Tokyo", at(2026, 1, 1)) == at(2026, 1, 4, 15)


def test_an_hour_that_is_left_out_is_made_up_for() -> None:
    """On the day when 02:30 does not exist there is one run all the same."""
    days = [each.astimezone(ZoneInfo("Europe/Berlin")).date().day for each in following("30 2 * * *", "Europe/Berlin", at(2026, 3, 27, 12), 4)]  # fmt: skip
    assert days == [28, 29, 30, 31]


def test_an_hour_that_comes_twice_counts_once() -> None:
    """Unless every hour is asked for."""
    once = following("30 2 * * *", "Europe/Berlin", at(2026, 10, 24, 12), 2)
    assert once == [at(2026, 10, 25, 0, 30), at(2026, 10, 26, 1, 30)]
    hourly = following("30 * * * *", "Europe/Berlin", at(2026, 10, 25), 3)
    assert hourly == [at(2026, 10, 25, 0, 30), at(2026, 10, 25, 1, 30), at(2026, 10, 25, 2, 30)]


def test_a_leap_day_is_waited_for() -> None:
    assert next_cron("0 0 29 2 *", "UTC", at(2026, 1, 1)) == at(2028, 2, 29)


def test_the_clock_wakes_at_its_times_by_the_clock_that_it_is_given() -> None:
    """A server's clock that is days ahead: three o'clock there is when the timer fires, and what has passed fires at once."""

    async def story() -> list[tuple[str, float]]:
        ahead = at(2030, 6, 2, 2, 59, 59) - local_now()
        called: list[tuple[str, float]] = []
        began = time.monotonic()
        clock = Clock(lambda key: called.append((key, time.monotonic() - began)), lambda: local_now() + ahead)
        three = next_cron("0 3 * * 0", "UTC", at(2030, 6, 2, 2, 59))
        assert three == at(2030, 6, 2, 3)
        clock.set({"never": at(2030, 6, 2, 4)})
        clock.set({"sunday": three, "past": at(2030, 1, 1), "later": at(2030, 6, 2, 4)})
        await asyncio.sleep(1.6)
        clock.close()
        return called

    called = asyncio.run(story())
    assert [key for key, _ in called] == ["past", "sunday"]
    assert called[0][1] < 0.5
    assert 0.9 < called[1][1] < 1.6


def test_a_closed_clock_is_silent() -> None:
    async def story() -> list[str]:
        called: list[str] = []
        clock = Clock(called.append)
        clock.close()
        clock.set({"soon": local_now() + timedelta(seconds=0.2)})
        clock.close()
        await asyncio.sleep(0.4)
        return called

    assert asyncio.run(story()) == []
