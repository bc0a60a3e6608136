"""Validations: predictions against targets, by dataset and metric."""

from __future__ import annotations

import pytest

import components.validation as validation_module
from components import Dataset, DeclarationError, ListExamples, Metric, MetricError, ObjectModel, Query, Validation
from components.errors import Stopped

ACC = Metric("acc", lambda p, t: sum(a == b for a, b in zip(p, t, strict=True)) / len(p))
ERR = Metric("err", lambda p, t: sum(a != b for a, b in zip(p, t, strict=True)))
SMALL, BIG = Dataset("small", Query("t")), Dataset("big", Query("t").filter({"n": 1}), pin=True)


def test_each_metric_is_computed_on_each_dataset():
    """All but the last field go to the model, one as it is; the last is the target; rows that are gone are passed
    over.
    """
    rows = {"small": [(1, 2), None, (2, 5)], "big": [(n, 2 * n) for n in range(1000)]}
    validation = Validation("v", ["x", "y"], [SMALL, BIG], [ACC, ERR])
    values = validation.evaluate(
        ObjectModel("m", lambda x: 2 * x), lambda dataset: ListExamples(rows[dataset.identifier])
    )
    assert values == {"small/acc": 0.5, "small/err": 1.0, "big/acc": 1.0, "big/err": 0.0}
    assert list(values) == validation.names
    assert validation.metric("big/err") is ERR


def test_several_inputs_are_several_arguments():
    """By position, or by the names of the key."""
    rows = ListExamples([(1, 2, 3), None])
    model = ObjectModel("m", lambda a, b: a + b)
    assert Validation("v", ["a", "b", "y"], [SMALL], [ACC]).evaluate(model, lambda _: rows) == {"small/acc": 1.0}
    key = {"a": "b", "b": "a", "y": "target"}
    minus = ObjectModel("m", lambda a, b: a - b)
    named = Validation("v", key, [SMALL], [Metric("first", lambda p, _t: p[0])])
    assert named.evaluate(minus, lambda _: rows) == {"small/first": 1.0}


@pytest.mark.parametrize("key", ["x", ["x"], ["x", "x"], {"x": "given"}])
def test_one_field_may_be_input_and_target(key):
    """The target is as the row has it, also if the model works in place on its input."""
    validation = Validation("v", key, [SMALL], [Metric("targets", lambda _p, t: t[0][0])])
    row = ([1.0, 2.0],) * (2 if key == ["x", "x"] else 1)
    rows = ListExamples([tuple(list(value) for value in row)])

    def broken(given):
        given[0] = 5.0
        return given

    assert validation.evaluate(ObjectModel("m", broken), lambda _: rows) == {"small/targets": 1.0}


def test_a_metric_without_a_value_has_nan():
    """The others have theirs."""
    none = Metric("none", lambda _p, _t: float("nan"), greater_is_better=True)
    values = Validation("v", ["x", "y"], [SMALL], [none, ACC]).evaluate(
        ObjectModel("m", lambda x: x), lambda _: ListExamples([(1, 1)])
    )
    assert values == {"small/none": pytest.approx(float("nan"), nan_ok=True), "small/acc": 1.0}


def test_an_empty_dataset_is_an_error_that_says_so():
    """Also one all of whose rows are gone."""
    validation = Validation("v", ["x", "y"], [BIG], [ACC])
    for rows in ([], [None, None]):
        with pytest.raises(MetricError, match="dataset 'big' is empty: no row of table 't' matches"):
            validation.evaluate(ObjectModel("m", str), lambda _, rows=rows: ListExamples(rows))


def test_a_failing_metric_says_where():
    """The validation, the dataset and the metric."""
    validation = Validation("v", ["x", "y"], [SMALL], [Metric("bad", lambda _p, _t: 1 / 0)])
    with pytest.raises(MetricError, match="validation 'v', dataset 'small': metric 'bad' raised ZeroDivisionError"):
        validation.evaluate(ObjectModel("m", str), lambda _: ListExamples([(1, 1)]))


def test_an_evaluation_can_be_stopped():
    """It is asked before each batch."""
    asked = []

    def stopped():
        asked.append(1)
        return "cancelled" if len(asked) == 3 else None

    validation = Validation("v", ["x", "y"], [SMALL], [ACC])
    with pytest.raises(Stopped, match="cancelled"):
        validation.evaluate(ObjectModel("m", str), lambda _: ListExamples([(1, 1)] * 1000), stopped=stopped)


@pytest.mark.parametrize(("quick", "batches"), [(3600.0, 7), (0.0, 250)], ids=["quick", "slow"])
def test_the_batches_of_a_slow_model_stay_small(monkeypatch, quick, batches):
    """It is asked between two batches whether to go on; each time counts as progress."""
    monkeypatch.setattr(validation_module, "QUICK_SECONDS", quick)
    asked = []
    validation = Validation("v", ["x", "y"], [SMALL], [ACC])
    rows = ListExamples([(n, n) for n in range(1000)])
    model = ObjectModel("m", lambda xs: xs, batched=True)
    assert validation.evaluate(model, lambda _: rows, stopped=lambda: asked.append(1)) == {"small/acc": 1.0}
    assert len(asked) == batches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": []}, "key: names no field"),
        ({"datasets": []}, "datasets: there is none"),
        ({"metrics": [ACC, ACC]}, "metrics: 'acc' occurs twice"),
        ({"metrics": [len]}, "expected a list of Metric"),
        ({"when": [{"every": 0}]}, "when.0.every: it must be a duration"),
        ({"when": [{"cron": "0 3 * *"}]}, "validation 'v': when.0.cron: .*a time has five fields"),
        ({"when": [{"every": 5, "rows": 5}]}, "when.0: has every and rows"),
        ({"when": [{"below": {"acc": 0.5}}]}, "when.0.below: .acc. is no"),
        ({"identifier": "a/b"}, "validation 'a/b'"),
    ],
)
def test_a_validation_that_makes_no_sense_is_refused(arguments, message):
    """With what is wrong with it."""
    good = {"identifier": "v", "key": ["x", "y"], "datasets": [SMALL], "metrics": [ACC]}
    with pytest.raises(DeclarationError, match=message):
        Validation(**{**good, **arguments})


def test_triggers_are_written_in_one_form():
    """Durations in seconds, a cron's time zone filled in."""
    when = [{"every": "6h"}, {"cron": "0 3 * * 0"}, {"rows": 1000}, {"below": {"v/small/acc": 1}}]
    made = Validation("v", ["x", "y"], [SMALL], [ACC], when=when).when
    assert [each.model_dump() for each in made] == [
        {"every": 21600.0},
        {"cron": "0 3 * * 0", "timezone": "UTC"},
        {"rows": 1000},
        {"below": {"v/small/acc": 1.0}},
    ]


def test_a_dataset_needs_a_query():
    """Not the name of a table."""
    with pytest.raises(DeclarationError, match="dataset 'd': select: expected a query"):
        Dataset("d", "mnist")
