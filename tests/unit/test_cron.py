"""Crontab's times: what each expression names, in time zones whose clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from components import cron


def upcoming(expression: str, zone: str, after: datetime, count: int) -> list[datetime]:
    """The next moments, one after another."""
    found = []
    for _ in range(count):
        moment = cron.following(expression, zone, after)
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
    moments = upcoming(text, "UTC", at(2026, 1, 1), 3)
    assert {moment.weekday() for moment in moments} == {weekday}
    assert {(moment.hour, moment.minute, moment.second) for moment in moments} == {(3, 0, 0)}
    assert moments[1] - moments[0] == timedelta(days=7)


def test_a_range_of_weekdays_over_the_end_of_the_week() -> None:
    assert [each.strftime("%a") for each in upcoming("0 0 * * 5-7", "UTC", at(2026, 1, 1), 4)] == [
        "Fri",
        "Sat",
        "Sun",
        "Fri",
    ]


def test_a_day_of_the_month_or_one_of_the_week() -> None:
    """Where both are named, crontab takes either."""
    found = upcoming("0 0 13 * fri", "UTC", at(2026, 1, 1), 5)
    assert [each.day for each in found] == [2, 9, 13, 16, 23]


def test_the_moment_itself_is_over() -> None:
    assert cron.following("0 3 * * *", "UTC", at(2026, 1, 1, 3)) == at(2026, 1, 2, 3)
    assert cron.following("0 3 * * *", "UTC", at(2026, 1, 1, 2, 59, 59)) == at(2026, 1, 1, 3)


def test_a_time_zone_counts() -> None:
    """Three in the morning in Berlin is another moment in winter than in summer, and than in Tokyo."""
    assert cron.following("0 3 * * *", "Europe/Berlin", at(2026, 1, 1, 12)) == at(2026, 1, 2, 2)
    assert cron.following("0 3 * * *", "Europe/Berlin", at(2026, 7, 1, 12)) == at(2026, 7, 2, 1)
    assert cron.following("0 3 * * *", "Asia/Tokyo", at(2026, 1, 1, 12)) == at(2026, 1, 1, 18)
    assert cron.following("0 0 * * mon", "Asia/Tokyo", at(2026, 1, 1)) == at(2026, 1, 4, 15)


def test_an_hour_that_is_left_out_is_made_up_for() -> None:
    """On the day when 02:30 does not exist there is one run all the same."""
    days = [
        each.astimezone(ZoneInfo("Europe/Berlin")).date().day
        for each in upcoming("30 2 * * *", "Europe/Berlin", at(2026, 3, 27, 12), 4)
    ]
    assert days == [28, 29, 30, 31]


def test_an_hour_that_comes_twice_counts_once() -> None:
    """Unless every hour is asked for."""
    once = upcoming("30 2 * * *", "Europe/Berlin", at(2026, 10, 24, 12), 2)
    assert once == [at(2026, 10, 25, 0, 30), at(2026, 10, 26, 1, 30)]
    hourly = upcoming("30 * * * *", "Europe/Berlin", at(2026, 10, 25), 3)
    assert hourly == [at(2026, 10, 25, 0, 30), at(2026, 10, 25, 1, 30), at(2026, 10, 25, 2, 30)]


def test_a_leap_day_is_waited_for() -> None:
    assert cron.following("0 0 29 2 *", "UTC", at(2026, 1, 1)) == at(2028, 2, 29)


def test_a_day_on_which_midnight_is_left_out_or_moved_is_not_passed_over() -> None:
    """The first of April comes after the last Sunday of March."""
    assert cron.following("0 0 1 * *", "Europe/Berlin", at(2026, 3, 1)) == at(2026, 3, 31, 22)
    assert cron.following("0 0 * * mon", "Europe/Berlin", at(2026, 3, 28, 23, 30)) == at(2026, 3, 29, 22)
    days = upcoming("30 0 * * *", "America/New_York", at(2026, 3, 7, 12), 3)
    assert days == [at(2026, 3, 8, 5, 30), at(2026, 3, 9, 4, 30), at(2026, 3, 10, 4, 30)]
    havana = upcoming("0 0 * * *", "America/Havana", at(2026, 3, 7, 12), 2)  # where there is no midnight on the 8th
    assert havana == [at(2026, 3, 8, 5), at(2026, 3, 9, 4)]


ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Australia/Lord_Howe",
    "Asia/Beirut",
    "Pacific/Chatham",
    "America/St_Johns",
    "Africa/Cairo",
)
EXPRESSIONS = (
    "0 0 * * *",
    "30 0 * * *",
    "30 2 * * *",
    "*/15 2 * * *",
    "0 * * * *",
    "*/10 * * * *",
    "45 1,2,3 * * *",
    "59 23 * * sun",
    "5 1-23 * * *",
)


def transitions(zone: ZoneInfo) -> list[datetime]:
    """Moments within six hours before which the clocks of a zone are changed."""
    found, moment = [], at(2026, 1, 1)
    while moment.year == 2026:
        later = moment + timedelta(hours=6)
        if later.astimezone(zone).utcoffset() != moment.astimezone(zone).utcoffset():
            found.append(later)
        moment = later
    return found


@pytest.mark.parametrize("name", ZONES)
def test_around_each_change_of_the_clocks_it_is_what_a_look_at_every_minute_finds(name: str) -> None:
    """Every minute whose time on the wall is named, of those that come twice the first; and what was left out, a little
    later.
    """
    zone = ZoneInfo(name)
    for change in transitions(zone):
        begin, end = change - timedelta(hours=30), change + timedelta(hours=30)
        jump = end.astimezone(zone).utcoffset() - begin.astimezone(zone).utcoffset()  # type: ignore[operator]
        minutes = [begin + timedelta(minutes=minute) for minute in range(1, 60 * 60 + 1)]
        walls = [(moment, moment.astimezone(zone)) for moment in minutes]
        for expression in EXPRESSIONS:
            said = cron.parse(expression)
            wanted = set()
            for moment, wall in walls:
                today = wall.day in said.days and wall.isoweekday() % 7 in said.weekdays
                named = today and wall.hour in said.hours and wall.minute in said.minutes
                if named and (wall.fold == 0 or len(said.hours) == 24):
                    wanted.add(moment)
            found, moment = set(), begin
            while (following := cron.following(expression, name, moment)) is not None and following <= end:
                assert following > moment
                moment = following
                found.add(moment)
            assert wanted <= found, (expression, change)
            for extra in found - wanted:
                assert jump > timedelta(), (expression, extra)
                assert len(said.hours) < 24
                assert abs(extra - change) < timedelta(hours=8)
