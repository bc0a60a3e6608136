"""Metrics: callables and names of torchmetrics, their direction, and what is refused."""

# ruff: noqa: PLW0108 - the names of a lambda's parameters are what is tested
from __future__ import annotations

import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics
from PIL import Image

from components import Dataset, DeclarationError, Metric, MetricError, Query, Validation
from components.serialization import declare

# The tutorial's, letter by letter
acc = lambda x, y: sum([xx == yy for xx, yy in zip(x, y)]) / len(x)  # noqa: E731, B905


def test_a_callable_gets_lists_of_predictions_and_targets():
    """The tutorial's accuracy; arguments go along by name."""
    assert Metric("acc", acc)([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75
    assert (
        Metric("near", lambda p, t, by: sum(abs(a - b) < by for a, b in zip(p, t, strict=True)), arguments={"by": 2})(
            [1, 5], [2, 9]
        )
        == 1.0
    )


def test_a_metric_of_torchmetrics_by_name():
    """With and without its module, with arguments, as a function and as an instance."""
    assert Metric("mse", "MeanSquaredError")([1.0, 2.0], [1.0, 4.0]) == 2.0
    accuracy = Metric("acc", "torchmetrics:Accuracy", arguments={"task": "multiclass", "num_classes": 3})
    assert accuracy([0, 1, 2, 2], [0, 1, 2, 1]) == 0.75
    assert accuracy([0, 1], [0, 1]) == 1.0  # nothing is left of the call before
    vectors = [torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])]
    assert (
        Metric("acc", torchmetrics.classification.MulticlassAccuracy(num_classes=2, average="micro"))(vectors, [0, 0])
        == 0.5
    )
    functional = Metric("f", "torchmetrics.functional:accuracy", arguments={"task": "multiclass", "num_classes": 3})
    assert functional([0, 1], [0, 2]) == 0.5
    assert Metric("wer", "torchmetrics.text:WordErrorRate")(["a b", "c"], ["a b", "d"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        (Metric("acc", acc), True),
        (Metric("valid_loss", acc), False),
        (Metric("meanError", acc), False),
        (Metric("rmse", acc), False),
        (Metric("lossless", acc), True),
        (Metric("x", "MeanSquaredError"), False),
        (Metric("x", "R2Score"), True),
        (Metric("loss", "Accuracy", arguments={"task": "binary"}), True),
        (Metric("acc", acc, greater_is_better=False), False),
    ],
)
def test_which_way_is_up(metric, greater):
    """What torchmetrics knows; else the name tells; else greater is better."""
    assert metric.greater_is_better is greater


def test_masks_that_are_pictures_are_compared():
    """As a segmentation returns them, and a table holds them."""
    masks = [Image.fromarray(np.array(mask, "uint8")) for mask in ([[0, 1], [1, 1]], [[0, 0], [1, 1]])]
    metric = Metric("iou", "JaccardIndex", arguments={"task": "binary"})
    assert metric([masks[0]], [masks[1]]) == pytest.approx(2 / 3)


def test_a_metric_may_have_no_value():
    """NaN says so, as that of a recall without positives."""
    assert math.isnan(Metric("m", lambda _p, _t: float("nan"))([1], [1]))


@pytest.mark.parametrize("value", [float("-inf"), float("inf"), None, "many"])
def test_a_value_that_is_no_finite_number_is_an_error(value):
    """Such a value can neither be compared nor stored."""
    with pytest.raises(MetricError, match="metric 'm'"):
        Metric("m", lambda _p, _t: value)([1], [1])


def test_what_the_callable_raises_is_told():
    """With the metric's name, and the cause behind it."""
    with pytest.raises(MetricError, match=r"'acc' raised ZeroDivisionError: .*division") as caught:
        Metric("acc", acc)([], [])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_is_no_metric_is_refused():
    """A name of another module, a name that torchmetrics has not, bad arguments."""
    with pytest.raises(DeclarationError, match="no name of torchmetrics"):
        Metric("m", "os:system")
    with pytest.raises(DeclarationError, match="did you mean 'MeanSquaredError'"):
        Metric("m", "MeanSquaredEror")([1], [1])
    with pytest.raises(DeclarationError, match="arguments: building it raised"):
        Metric("m", "MeanSquaredError", arguments={"nonsense": 1})([1.0], [1.0])
    with pytest.raises(DeclarationError, match="expected a callable"):
        Metric("m", 3)


def test_declaring_a_metric_by_name_imports_neither_torch_nor_torchmetrics():
    """The supervisor declares them."""
    code = "import sys, components; components.Metric('m', 'MeanSquaredError'); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "False"


def inverted(targets, predictions):
    return float(sum(p == 1 for p in predictions))


@pytest.mark.parametrize(
    ("metric", "value", "greater"),
    [
        (Metric("m", sklearn.metrics.precision_score), 1.0, True),
        (Metric("m", sklearn.metrics.recall_score), 0.5, True),
        (Metric("m", functools.partial(sklearn.metrics.precision_score, zero_division=0)), 1.0, True),
        (Metric("m", sklearn.metrics.mean_squared_error), 0.25, False),
        (Metric("m", sklearn.metrics.zero_one_loss), 0.25, False),
        (Metric("m", sklearn.metrics.matthews_corrcoef), pytest.approx(0.577, abs=1e-3), True),
        (Metric("m", inverted), 1.0, None),
    ],
)
def test_predictions_and_targets_arrive_under_their_names(metric, value, greater):
    """scikit-learn takes the targets first; taken for predictions, precision is recall. It also names its direction."""
    assert metric([1, 0, 0, 0], [1, 1, 0, 0]) == value
    assert metric.known_direction is greater


def precise(targets, predictions):
    return sum(p == t == 1 for p, t in zip(predictions, targets, strict=True)) / sum(predictions)


class Precise(torchmetrics.Metric):
    """Whoever writes a torchmetrics class may take the targets first, too."""

    def __init__(self):
        super().__init__()
        self.add_state("value", torch.tensor(0.0))

    def update(self, y_true, y_pred):
        self.value = torch.tensor(precise(y_true.tolist(), y_pred.tolist()))

    def compute(self):
        return self.value


@pytest.mark.parametrize(
    "function",
    [
        lambda labels, preds: precise(labels, preds),
        lambda y, y_hat: precise(y, y_hat),
        lambda y, yhat: precise(y, yhat),
        lambda gt, pred: precise(gt, pred),
        lambda t, p: precise(t, p),
        lambda trueLabels, predLabels: precise(trueLabels, predLabels),  # noqa: N803 - as people write it
        lambda expected, got: precise(expected, got),
        lambda x, x_hat: precise(x, x_hat),
        lambda labels, outputs: precise(labels, outputs),
        lambda *, y_true, y_pred: precise(y_true, y_pred),
        lambda y_true, /, *, y_pred: precise(y_true, y_pred),
        lambda logits, labels: precise(labels, logits),
        lambda y, t: precise(t, y),
        lambda preds, y: precise(y, preds),
        lambda a, b: precise(b, a),
        functools.partial(torchmetrics.functional.precision, task="binary"),
        Precise,
    ],
)
def test_the_order_of_people_who_name_the_two_otherwise(function):
    """Labels first or last, in any of the usual words; what says nothing gets the predictions first."""
    metric = Metric("m", function, greater_is_better=True)
    assert metric([1, 1, 1, 0], [1, 0, 0, 0]) == pytest.approx(1 / 3)


def test_a_direction_that_no_name_tells_must_be_said():
    """A guess would keep the worst weights."""
    validation = Validation("v", key=("x", "y"), datasets=[Dataset("d", Query("t"))], metrics=[Metric("m", inverted)])
    with pytest.raises(DeclarationError, match=r"validations.v.metrics.m.greater_is_better: .*give the metric"):
        declare(validation, model="f")
