"""Times in the language of crontab: minute, hour, day of the month, month, day of the week.

What a field names is spelled out as a set of numbers here, once and by crontab's own rules (Sunday is 0 or 7, `*/2`
counts from the field's first value), so that no other reading of the same text can slip in behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

__all__ = ["Cron", "following", "parse", "zone"]

_SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_HOURS = 24
_FAR_DAYS = 3660  # a leap day may be eight years away
_PART = re.compile(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?")


@dataclass(frozen=True, slots=True)
class Cron:
    """The minutes that an expression names; in `weekdays` Sunday is 0."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool
    """Whether a day of the month or a day of the week will do: where crontab has both restricted, one of them is
    enough.
    """


def parse(text: str) -> Cron:
    """Return what a crontab expression of five fields says; ValueError with what is wrong with it."""
    words = _SHORT.get(text.strip().lower(), text).split()
    if len(words) != len(_FIELDS):
        raise ValueError(
            f"a time has five fields (minute, hour, day of the month, month, day of the week), here are {len(words)}"
        )
    minutes, hours, days, months, weekdays = (
        _numbers(word.lower(), *field) for word, field in zip(words, _FIELDS, strict=True)
    )
    either = not words[2].startswith("*") and not words[4].startswith("*")
    if not either and not any(min(days) <= _LONGEST.get(month, 31) for month in months):
        raise ValueError("no such day ever comes: none of these months is that long")
    return Cron(minutes, hours, days, months, frozenset(day % 7 for day in weekdays), either)


@lru_cache(maxsize=256)
def following(expression: str, timezone: str, after: datetime) -> datetime | None:
    """Return the first moment after `after` that a crontab expression names in a time zone, in UTC; None where none
    comes in ten years.

    An hour that the clocks leave out in spring is made up for an hour later; one that comes twice in autumn counts
    once, unless the expression names every hour. Raises ValueError where the expression or the time zone is none.
    """
    said, place = parse(expression), zone(timezone)
    day = after.astimezone(place).date() - timedelta(days=1)  # its last minutes may be moved into this one
    for _ in range(_FAR_DAYS):
        # A moment of the next day may come before one of this day, where the clocks change at midnight.
        coming = [moment for each in (day, day + timedelta(days=1)) for moment in _moments(said, each, place)]
        moments = [moment for moment in coming if moment > after]
        if moments:
            return min(moments)
        day += timedelta(days=1)
    return None


def _moments(said: Cron, day: date, place: tzinfo) -> Iterator[datetime]:
    """Yield the moments of a day, in UTC."""
    in_month, in_week = day.day in said.days, day.isoweekday() % 7 in said.weekdays
    if day.month not in said.months or not (in_month or in_week if said.either else in_month and in_week):
        return
    every_hour = len(said.hours) == _HOURS
    for hour in said.hours:
        for minute in said.minutes:
            named = datetime.combine(day, time(hour, minute), place)
            first, second = named.astimezone(UTC), named.replace(fold=1).astimezone(UTC)
            if first <= second or not every_hour:  # else it is left out, and the next hour is asked for anyway
                yield first
            if first < second and every_hour:
                yield second


@lru_cache(maxsize=256)
def zone(name: str) -> tzinfo:
    """Return a time zone by its name; ValueError where this machine knows none of that name."""
    if name == "UTC":  # known without a database of time zones
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # no such name; a folder or a path is none either
        raise ValueError(f"{name!r} is no time zone that this machine knows") from None


def _numbers(word: str, field: str, least: int, most: int, names: dict[str, int]) -> frozenset[int]:
    """Return the numbers that one field names."""
    found: set[int] = set()
    for part in word.split(","):
        match = _PART.fullmatch(part)
        if match is None or (match[1] == "*" and match[2]):
            raise ValueError(
                f"`{part}` says nothing as {field}; a field is *, 5, 1-5, */15 or a list of those with commas"
            )
        step = int(match[3] or 1)
        if match[1] == "*":
            first, last = least, 6 if names.get("sun") == 0 else most
        else:
            first = _number(match[1], field, least, most, names)
            last = _number(match[2], field, least, most, names) if match[2] else most if match[3] else first
        if first > last or step < 1:
            raise ValueError(f"`{part}` names no {field}: the first must not be above the last, nor the step below 1")
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(word: str, field: str, least: int, most: int, names: dict[str, int]) -> int:
    """Return the number that a word stands for."""
    number = names.get(word, int(word) if word.isdecimal() else -1)
    if not least <= number <= most:
        named = f" or {next(iter(names))} to {list(names)[-1]}" if names else ""
        raise ValueError(f"`{word}` is no {field}: it goes from {least} to {most}{named}")
    return number
