"""When a training or a validation is due: the declared schedules, and the decision of each about a time, a count or a
metric.

Pure: each function takes the stored state of a schedule and returns a decision. Times are aware datetimes of the
server's clock.

* `every` counts from the last run, or from when the schedule was first seen, and keeps its phase. Missed runs count as
  one.
* `rows` counts the rows of the tables against a baseline. The baseline follows the count down if rows are deleted.
* `below` fires when a metric falls below its bound. It fires again only if the metric has recovered since, or is lower
  than when it fired: a model that cannot reach the bound is not trained endlessly.

A schedule's `key` does not contain its number (an interval, a number of rows, a bound), so its count survives a change
of that number. Another time of day is a new schedule, which has missed no run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from components.declarations import TrainerDeclaration, ValidationDeclaration, queries

Kind = Literal["train", "validate"]
_KINDS: dict[str, Kind] = {"trainers": "train", "validations": "validate"}


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule of one target's runs. `when` is one WHEN of its declaration; a `below` has a single metric."""

    key: str
    kind: Kind
    target: str
    when: Mapping[str, Any]
    tables: tuple[str, ...]
    """The tables whose rows `rows` counts."""

    @property
    def trigger(self) -> str:
        """What fires it: "every", "cron", "rows" or "below"."""
        return next(name for name in ("every", "cron", "rows", "below") if name in self.when)

    @property
    def metric(self) -> tuple[str, float]:
        """The metric of a `below`, "validation/dataset/metric", and its bound."""
        [(metric, bound)] = self.when["below"].items()
        return metric, bound


def schedules(declarations: Mapping[str, Mapping[str, TrainerDeclaration | ValidationDeclaration]]) -> list[Schedule]:
    """Return the schedules of the stored declarations, of their "trainers" and "validations" by name."""
    found: dict[str, Schedule] = {}
    for section, kind in _KINDS.items():
        for target, declaration in declarations.get(section, {}).items():
            tables = tuple(dict.fromkeys(query.table for query in queries(declaration)))
            for when in declaration.when:
                for single in _single(when.model_dump()):
                    base = key = f"{kind}/{target}/{_named(single)}"
                    ordinal = 1
                    while key in found:
                        ordinal += 1
                        key = f"{base}/{ordinal}"
                    found[key] = Schedule(key, kind, target, single, tables)
    return list(found.values())


def _single(when: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "below" not in when:
        return [when]
    return [{"below": {metric: bound}} for metric, bound in when["below"].items()]


def _named(when: Mapping[str, Any]) -> str:
    if "cron" in when:
        return f"cron/{' '.join(when['cron'].split())} {when.get('timezone', 'UTC')}"
    if "below" in when:
        return f"below/{next(iter(when['below']))}"
    return "every" if "every" in when else "rows"


def next_every(last: datetime, every: float) -> datetime:
    """Return the next due time of an interval of `every` seconds after `last`."""
    return last + timedelta(seconds=every)


def due_every(last: datetime, now: datetime, every: float) -> datetime | None:
    """Return the latest due time since `last`, None if none has come. Several missed times give only the latest."""
    passed = (now - last) // timedelta(seconds=every)
    return last + passed * timedelta(seconds=every) if passed >= 1 else None


def rows_due(baseline: int, count: int, rows: int) -> bool:
    """Return whether at least `rows` rows were added since the count was `baseline`."""
    return count - baseline >= rows


def below(low: float | None, value: float, bound: float) -> tuple[bool, float | None]:
    """Return whether a metric's `value` fires, and the new `low`: the value at which it fired last, None if it has
    recovered.
    """
    if not value < bound:
        return False, None
    if low is None or value < low:
        return True, value
    return False, low
