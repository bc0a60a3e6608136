"""Rows that are drawn more often than others: by a weight, or each class equally often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from harness.interruptions import Killed, killed_at, outcome
from harness.training_script import ROWS, trained
from torch.nn.functional import mse_loss

from components import DeclarationError, TrainingError
from components.torch import Checkpoints, TorchModel, TorchTrainer
from components.torch.loader_options import LoaderOptions
from components.torch.order import Order, chances

SHORT = {"max_iterations": 60, "validation_interval": 30}


def drawn(weights, epochs=200, seed=0):
    """How often each place is drawn."""
    order = Order(len(weights), LoaderOptions(batch_size=3), seed, weights)
    return Counter(place for number in range(epochs * order.per_epoch) for place in order.places(number))


def test_rows_are_drawn_in_proportion_to_their_weights():
    """A weight of 0 is never drawn; an epoch has as many draws as there are rows."""
    counted = drawn([0.0, 1.0, 2.0, 5.0, 0.0])
    assert sum(counted.values()) == 1000
    assert set(counted) == {1, 2, 3}
    assert [counted[place] / 1000 for place in (1, 2, 3)] == pytest.approx([0.125, 0.25, 0.625], abs=0.06)
    assert drawn([0.0, 1.0, 2.0, 5.0, 0.0]) == counted
    assert drawn([0.0, 1.0, 2.0, 5.0, 0.0], seed=1) != counted


def test_each_class_is_drawn_equally_often():
    """Whatever its number of rows."""
    classes = ["a"] * 90 + ["b"] * 9 + ["c"]
    counted = drawn(chances(classes, classes=True, field="c"), epochs=60)
    by_class = Counter()
    for place, times in counted.items():
        by_class[classes[place]] += times
    assert [by_class[kind] / 6000 for kind in "abc"] == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ([1, 1.0, np.int64(1), torch.tensor(1), True], [0, 0, 0, 0, 1]),
        (["1", 1, b"1", None, None], [0, 1, 2, 3, 3]),
        ([[1, 2], [1, 2], (1, 2), {"a": 1}, {"a": 1}], [0, 0, 1, 2, 2]),
        ([torch.tensor([1, 2]), torch.tensor([1, 2]), np.array([1, 3])], [0, 0, 1]),
    ],
)
def test_what_counts_as_one_class(values, same):
    """Equal values do, of whatever type of number."""
    weights = chances(values, classes=True, field="c")
    assert weights == [1 / same.count(kind) for kind in same]


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), None, "2", True])
def test_what_is_no_weight_is_refused_by_its_row(value):
    """And so are weights that are all 0."""
    with pytest.raises(TrainingError, match="weighted_by: field 'w' of row 1 is not a number from 0"):
        chances([1, value], classes=False, field="w")
    with pytest.raises(TrainingError, match="'w' is 0 in every row"):
        chances([0, 0.0], classes=False, field="w")


@pytest.mark.parametrize("workers", [0, 2])
def test_it_resumes_bit_for_bit(workers, tmp_path):
    """A row that is drawn twice in a batch is transformed twice, each time from a copy of its own."""
    weights = [float(place % 7) ** 3 for place in range(ROWS)]
    options = {**SHORT, "loader_kwargs": {"batch_size": 8, "num_workers": workers}}
    undisturbed = outcome(trained(None, options, chances=weights))
    for kill in (5, 40):
        checkpoints = Checkpoints(tmp_path / str(kill))
        with pytest.raises(Killed):
            trained(checkpoints, {**options, "checkpoint_seconds": 0}, chances=weights, stopped=killed_at(kill))
        assert outcome(trained(checkpoints, options, chances=weights)) == undisturbed
    assert undisturbed != outcome(trained(None, options))


def test_a_checkpoint_of_other_chances_is_not_used(tmp_path):
    """The rows of its batches were others."""
    said = []
    checkpoints = Checkpoints(tmp_path)
    trained(checkpoints, SHORT, chances=[1.0] * ROWS)
    trained(checkpoints, SHORT, chances=[2.0] * ROWS, report=lambda progress: said.append(progress.get("message")))
    assert "the checkpoint is of another training, this one begins anew" in said


def test_fit_draws_by_a_field_of_the_key():
    """By the target too; a field that the rows have not is named."""
    torch.manual_seed(0)
    seen = Counter()

    def preprocess(x):
        seen[x] += 1
        return torch.tensor([x])

    model = TorchModel("m", torch.nn.Linear(1, 1), preprocess=preprocess, preferred_devices=("cpu",))
    xs, ys = [0.0] * 99 + [1.0], [0] * 99 + [1]
    given = {"objective": lambda y, t: mse_loss(y.squeeze(1), t.float()), "key": ("x", "y"), "max_iterations": 30}
    model.fit(xs, ys, balanced_by="y", **given)
    assert seen[1.0] / sum(seen.values()) == pytest.approx(0.5, abs=0.1)
    model.trainer = None
    with pytest.raises(DeclarationError, match="the rows have no field 'z' to draw them by"):
        model.fit(xs, ys, weighted_by="z", **given)


def test_only_one_way_and_only_at_random():
    """What contradicts it is refused."""
    with pytest.raises(DeclarationError, match="name one of the two"):
        TorchTrainer("t", mse_loss, weighted_by="w", balanced_by="c")
    with pytest.raises(DeclarationError, match="balanced_by: rows are drawn at random, so shuffle cannot be False"):
        TorchTrainer("t", mse_loss, balanced_by="c", loader_kwargs={"shuffle": False})
