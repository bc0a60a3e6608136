"""Times as crontab expressions: minute, hour, day of the month, month, day of the week.

`parse` expands each field to a set of numbers by crontab's own rules (Sunday is 0 or 7, `*/2` counts from the field's
first value). All other code uses these sets, so an expression has only one meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

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
_FAR_DAYS = 3660  # the next leap day may be eight years away
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
    """Whether one match is enough: if both day fields are restricted, crontab requires only one of them to match."""


def parse(text: str) -> Cron:
    """Return the `Cron` of an expression of five fields; raises ValueError that describes the error in it."""
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
        raise ValueError("this date never occurs: none of these months is that long")
    return Cron(minutes, hours, days, months, frozenset(day % 7 for day in weekdays), either)


@lru_cache(maxsize=256)
def following(expression: str, timezone: str, after: datetime) -> datetime | None:
    """Return the first time after `after` that an expression names in a time zone, in UTC.

    None means that no such time comes in ten years. A time in the hour that is skipped in spring runs one hour later. A
    time in the hour that occurs twice in autumn runs once, unless the expression names every hour. Raises ValueError if
    the expression or the time zone is invalid.
    """
    cron, tz = parse(expression), zone(timezone)
    day = after.astimezone(tz).date() - timedelta(days=1)  # its last minutes may be moved into the next day
    for _ in range(_FAR_DAYS):
        # If the clocks change at midnight, a time of the next day may come before one of this day.
        coming = [moment for date_ in (day, day + timedelta(days=1)) for moment in _moments(cron, date_, tz)]
        moments = [moment for moment in coming if moment > after]
        if moments:
            return min(moments)
        day += timedelta(days=1)
    return None


def _moments(cron: Cron, day: date, tz: tzinfo) -> Iterator[datetime]:
    """Yield the times of a day, in UTC."""
    in_month, in_week = day.day in cron.days, day.isoweekday() % 7 in cron.weekdays
    if day.month not in cron.months or not (in_month or in_week if cron.either else in_month and in_week):
        return
    every_hour = len(cron.hours) == _HOURS
    for hour in cron.hours:
        for minute in cron.minutes:
            local = datetime.combine(day, time(hour, minute), tz)
            first, second = local.astimezone(UTC), local.replace(fold=1).astimezone(UTC)
            if first <= second or not every_hour:  # otherwise the hour is skipped, and the next hour runs anyway
                yield first
            if first < second and every_hour:
                yield second


@lru_cache(maxsize=256)
def zone(name: str) -> tzinfo:
    """Return a time zone by its name; raises ValueError if this machine knows no such zone."""
    if name == "UTC":  # needs no time zone database
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # unknown name; ZoneInfo raises the others for a folder or a path
        raise ValueError(f"{name!r} is no time zone that this machine knows") from None


def _numbers(word: str, field: str, least: int, most: int, names: dict[str, int]) -> frozenset[int]:
    """Return the numbers that one field names."""
    numbers: set[int] = set()
    for part in word.split(","):
        match = _PART.fullmatch(part)
        if match is None or (match[1] == "*" and match[2]):
            raise ValueError(
                f"`{part}` is not valid as {field}; a field is *, 5, 1-5, */15 or a list of those with commas"
            )
        step = int(match[3] or 1)
        if match[1] == "*":
            first, last = least, 6 if names.get("sun") == 0 else most
        else:
            first = _number(match[1], field, least, most, names)
            last = _number(match[2], field, least, most, names) if match[2] else most if match[3] else first
        if first > last or step < 1:
            raise ValueError(f"`{part}` names no {field}: the first must not be above the last, nor the step below 1")
        numbers.update(range(first, last + 1, step))
    return frozenset(numbers)


def _number(word: str, field: str, least: int, most: int, names: dict[str, int]) -> int:
    """Return the number of a word, which is a name or decimal digits."""
    number = names.get(word, int(word) if word.isdecimal() else -1)
    if not least <= number <= most:
        named = f" or {next(iter(names))} to {list(names)[-1]}" if names else ""
        raise ValueError(f"`{word}` is no {field}: it goes from {least} to {most}{named}")
    return number
