"""Triggers: the occasions on which a training or a validation runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from components import cron
from components.errors import DeclarationError

__all__ = ["LONGEST_SECONDS", "MOST_ROWS", "triggers"]

LONGEST_SECONDS = 366 * 86_400
MOST_ROWS = 10**12

_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FORMS = (
    "{'every': 3600}, {'cron': '0 3 * * *', 'timezone': 'UTC'}, {'rows': 1000} "
    "or {'below': {'validation/dataset/metric': 0.97}}"
)


def triggers(owner: str, when: Any) -> list[dict[str, Any]]:
    """The triggers of `owner` ("trainer 'lenet'"), one or several mappings, as they are declared: `every` in seconds,
    `cron` with its time zone.

    `every` may be a string with its unit, such as "6h"; it is of a second to a year. Raises DeclarationError for what
    is no trigger.
    """
    if isinstance(when, str) or not isinstance(when, Iterable):
        raise DeclarationError(f"{owner}: when: expected a list of {_FORMS}, got {when!r}")
    given = [when] if isinstance(when, Mapping) else list(when)
    return [_trigger(owner, item) for item in given]


def _trigger(owner: str, given: Any) -> dict[str, Any]:
    kinds = set(given) - {"timezone"} if isinstance(given, Mapping) else set()
    if len(kinds) != 1 or ("timezone" in given and "cron" not in given):
        raise DeclarationError(f"{owner}: when: expected {_FORMS}, got {given!r}")
    kind = kinds.pop()
    value = given[kind]
    if kind == "every" and (seconds := _seconds(value)) is not None:
        return {"every": seconds}
    if kind == "rows" and isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_ROWS:
        return {"rows": value}
    if kind == "cron" and isinstance(value, str) and isinstance(given.get("timezone", "UTC"), str):
        return _cron(owner, value, given.get("timezone", "UTC"))
    if kind == "below" and isinstance(value, Mapping) and value and all(map(_bound, value.items())):
        return {"below": {name: float(bound) for name, bound in value.items()}}
    raise DeclarationError(f"{owner}: when: expected {_FORMS}, got {given!r}")


def _cron(owner: str, text: str, zone: str) -> dict[str, Any]:
    try:
        cron.parse(text)
        cron.zone(zone)
    except ValueError as error:
        raise DeclarationError(
            f"{owner}: when: {{'cron': {text!r}, 'timezone': {zone!r}}}: {error}; for example {{'cron': '0 3 * * *'}}, "
            "at three every night"
        ) from None
    return {"cron": text, "timezone": zone}


def _seconds(value: Any) -> float | None:
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        return None if found is None else _positive(float(found[1]) * _SECONDS[found[2]])
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else _positive(float(value))


def _positive(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) and 1 <= seconds <= LONGEST_SECONDS else None


def _bound(item: tuple[Any, Any]) -> bool:
    name, bound = item
    number = isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound)
    return number and isinstance(name, str) and len(name.split("/")) == 3 and all(name.split("/"))
