"""When a run is due: what each kind of occasion says about a moment, a count of rows, a metric; and what crontab's
words mean.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from harness.declarations import declaration
from hypothesis import given
from hypothesis import strategies as st

from components import cron
from daemon.handlers.schedule import below, due_every, next_every, rows_due, schedules

START = datetime(2026, 1, 1, tzinfo=UTC)


def declared(*when: dict[str, Any]) -> dict[str, Any]:
    return {
        "trainers": {"lenet": declaration("trainer", table="mnist", when=list(when))},
        "validations": {
            "v": declaration(
                "validation",
                datasets={"a": {"table": "x"}, "b": {"table": "y"}, "c": {"table": "x"}},
                when=[{"rows": 5}],
            )
        },
    }


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_every_occasion_of_trainers_and_validations_is_a_schedule() -> None:
    """Each has its target, its kind, and the tables whose rows it may count; several metrics are a schedule each."""
    found = schedules(
        declared(
            {"every": 60.0},
            {"cron": "0  3 * * *", "timezone": "UTC"},
            {"rows": 10},
            {"below": {"v/a/acc": 0.9, "v/b/acc": 0.8}},
        )
    )
    assert [(each.key, each.kind, each.target, each.tables) for each in found] == [
        ("train/lenet/every", "train", "lenet", ("mnist",)),
        ("train/lenet/cron/0 3 * * * UTC", "train", "lenet", ("mnist",)),
        ("train/lenet/rows", "train", "lenet", ("mnist",)),
        ("train/lenet/below/v/a/acc", "train", "lenet", ("mnist",)),
        ("train/lenet/below/v/b/acc", "train", "lenet", ("mnist",)),
        ("validate/v/rows", "validate", "v", ("x", "y")),
    ]
    assert [each.trigger for each in found] == ["every", "cron", "rows", "below", "below", "rows"]
    assert found[4].metric == ("v/b/acc", 0.8)


def test_another_number_keeps_the_key_and_another_time_of_day_does_not() -> None:
    """What counts from before goes on counting when its number changes; a new time has missed nothing."""

    def keys(*when: dict[str, Any]) -> list[str]:
        return [each.key for each in schedules({"trainers": declared(*when)["trainers"]})]

    assert keys({"rows": 1000}, {"every": 5.0}) == keys({"rows": 10}, {"every": 50.0})
    assert keys({"cron": "0 3 * * *"}) != keys({"cron": "0 4 * * *"})
    assert keys({"cron": "0 3 * * *"}) != keys({"cron": "0 3 * * *", "timezone": "Asia/Tokyo"})
    assert len(set(keys({"every": 5.0}, {"every": 7.0}))) == 2


def test_nothing_declared_is_no_schedule() -> None:
    assert schedules({}) == []
    assert schedules({"trainers": {"m": declaration("trainer")}, "validations": {}}) == []


def test_an_interval_is_due_when_it_has_passed() -> None:
    assert due_every(START, after(59.9), 60) is None
    assert due_every(START, after(60), 60) == after(60)
    assert next_every(START, 60) == after(60)


def test_missed_intervals_are_one_run_and_the_phase_stays() -> None:
    """After a long absence one run is due, and the next one at the next full interval."""
    came = due_every(START, after(3600 * 24 * 365 + 30), 60)
    assert came == after(3600 * 24 * 365)
    assert due_every(came, after(3600 * 24 * 365 + 30), 60) is None


def test_a_clock_that_went_back_makes_nothing_due() -> None:
    assert due_every(START, after(-100), 60) is None


@given(st.floats(1, 1e6), st.floats(0, 1e8))
def test_a_due_interval_is_the_latest_that_has_come(every: float, passed: float) -> None:
    """What is noted lies in the past, less than an interval ago, and a whole number of intervals after the last run."""
    now = after(passed)
    came = due_every(START, now, every)
    if came is None:
        assert now - START < timedelta(seconds=every)
    else:
        assert timedelta() <= now - came < timedelta(seconds=every)
        assert (came - START) % timedelta(seconds=every) == timedelta()


def test_rows_are_due_with_the_last_of_them() -> None:
    """997 do not, 999 do not, the 1,000th does."""
    assert [rows_due(200, 200 + new, 1000) for new in (0, 997, 999, 1000, 1003)] == [False, False, False, True, True]


def test_a_metric_fires_when_it_falls_and_again_when_it_falls_lower() -> None:
    """A model that cannot reach the bound is not trained at every validation."""
    low: float | None = None
    fired = []
    for value in (0.99, 0.9, 0.95, 0.9, 0.85, 0.85, 0.98, 0.96, 0.97):
        fires, low = below(low, value, 0.97)
        fired.append(fires)
    assert fired == [False, True, False, False, True, False, False, True, False]


@pytest.mark.parametrize(
    ("text", "field", "numbers"),
    [
        ("*/15 * * * *", "minutes", {0, 15, 30, 45}),
        ("5 0-6/3,22 * * *", "hours", {0, 3, 6, 22}),
        ("0 0 10/10 * *", "days", {10, 20, 30}),
        ("0 0 * jan,MAR-may *", "months", {1, 3, 4, 5}),
        ("0 0 * * 0", "weekdays", {0}),
        ("0 0 * * 7", "weekdays", {0}),
        ("0 0 * * 5-7", "weekdays", {5, 6, 0}),
        ("0 0 * * mon-fri", "weekdays", {1, 2, 3, 4, 5}),
        ("0 0 * * */2", "weekdays", {0, 2, 4, 6}),
        ("0 0 * * *", "weekdays", set(range(7))),
        ("@weekly", "weekdays", {0}),
        ("@daily", "hours", {0}),
    ],
)
def test_what_crontab_means(text: str, field: str, numbers: set[int]) -> None:
    assert getattr(cron.parse(text), field) == numbers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 3 * *", "here are 4"),
        ("0 3 * * * *", "here are 6"),
        ("60 3 * * *", "`60` is no minute: it goes from 0 to 59"),
        ("0 24 * * *", "`24` is no hour"),
        ("0 0 0 * *", "`0` is no day of the month"),
        ("0 0 * 13 *", "is no month: it goes from 1 to 12 or jan to dec"),
        ("0 0 * * sunday", "`sunday` is no day of the week: it goes from 0 to 7 or sun to sat"),
        ("0 0 * * 8", "`8` is no day of the week"),
        ("0 0 * * sat-mon", "names no day of the week"),
        ("0 0 L * *", "`l` is no day of the month"),
        ("*/0 * * * *", "the step below 1"),
        ("0 0 1,,2 * *", "`` is not valid"),
        ("*-5 * * * *", "is not valid"),
        ("0 0 30 2 *", "this date never occurs"),
        ("0 0 31 4,6,9,11 *", "this date never occurs"),
        ("@often", "here are 1"),
    ],
)
def test_what_crontab_does_not_know(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        cron.parse(text)
    assert words in str(refused.value)


def test_a_day_that_comes_every_four_years_is_one() -> None:
    assert cron.parse("0 0 29 2 *").days == {29}
