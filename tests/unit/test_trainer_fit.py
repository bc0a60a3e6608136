"""`model.fit(X, y)` as in scikit-learn, in process."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, mse_loss

from components import Arguments, Dataset, DeclarationError, Metric, ObjectModel, TrainingError, Validation
from components.examples import ListExamples
from components.query import Query
from components.torch import TorchModel, TorchTrainer, weights
from examples import mnist

CPU = {"preferred_devices": ("cpu",)}


def lenet():
    """The tutorial's model."""
    torch.manual_seed(0)
    return TorchModel("my-model", mnist.LeNet5(10), mnist.preprocess, mnist.postprocess, **CPU)


def accuracy(predictions, targets):
    """The share of those that are equal."""
    return sum(x == y for x, y in zip(predictions, targets, strict=True)) / len(targets)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """On a busy machine two threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    """Images and labels."""
    return tuple(zip(*mnist.digits(300, seed=3), strict=True))


OPTIONS = {
    "objective": cross_entropy,
    "loader_kwargs": {"batch_size": 32},
    "max_iterations": 30,
    "validation_interval": 10,
    "optimizer_kwargs": {"lr": 0.005},
}


def test_a_model_learns_in_process(digits):
    """It returns the model; the traces are in its trainer."""
    images, labels = digits
    model = lenet()
    assert model.fit(images[:250], labels[:250], valid=(images[250:], labels[250:]), **OPTIONS) is model
    assert accuracy(model.predict_batches(images[250:]), labels[250:]) > 0.6
    assert model.trainer.metric_steps == [10, 20, 30]
    assert list(model.trainer.metric_values) == ["train/loss", "valid/loss"]
    assert len(model.trainer.history) == 3


def test_the_models_own_trainer_and_validation_are_used(digits):
    """The validation's metrics on the rows kept apart; the trainer itself gets the traces."""
    images, labels = digits
    model = lenet()
    own = model.trainer = TorchTrainer("my-trainer", folds=0.25, **OPTIONS)
    model.validation = Validation(
        "performance", ["img", "class"], [Dataset("valid", Query("mnist"))], [Metric("acc", accuracy)]
    )
    model.fit(images, labels)
    assert model.trainer is own
    assert list(own.metric_values) == ["valid/acc", "train/loss", "valid/loss"]
    assert max(own.metric_values["valid/acc"]) > 0.5
    model.fit(images, labels, max_iterations=1)
    assert own.metric_steps == [10, 20, 30]
    assert model.trainer.metric_steps == [1]
    assert model.trainer.folds == 0.25


def test_rows_with_their_targets():
    """Without y the last value of each row is the target; rows of several arguments may be `Arguments`."""

    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def forward(self, a, b):
            return self.weight[0] * a + self.weight[1] * b

    xs = [(torch.tensor(i / 10), torch.tensor(1.0)) for i in range(20)]
    targets = [3 * a.item() + 1 for a, _ in xs]
    hashes = set()
    for given in (
        ([(a, b, y) for (a, b), y in zip(xs, targets, strict=True)], None),
        (ListExamples([(a, b, y) for (a, b), y in zip(xs, targets, strict=True)]), None),
        ([Arguments(x) for x in xs], targets),
    ):
        model = TorchModel("sum", Sum(), **CPU).fit(*given, objective=mse_loss, max_iterations=5)
        hashes.add(weights.content_hash(model.state()))
    assert len(hashes) == 1


def test_tensors_and_arrays_are_rows_of_their_first_dimension():
    """As scikit-learn takes them."""
    x = torch.linspace(0, 1, 64).unsqueeze(1)
    options = {"objective": mse_loss, "max_iterations": 300, "optimizer_kwargs": {"lr": 0.05}}
    for xs, ys in ((x, 2 * x + 1), (x.numpy(), (2 * x + 1).double().numpy())):
        torch.manual_seed(0)
        model = TorchModel("line", torch.nn.Linear(1, 1), **CPU).fit(xs, ys, **options)
        assert model.predict(torch.tensor([0.5])).item() == pytest.approx(2.0, abs=0.05)


def test_what_is_missing_is_said():
    """An objective, a target for each row, an option that there is, a model that can learn."""
    model = lenet()
    with pytest.raises(DeclarationError, match="fit needs an objective"):
        model.fit([1], [1])
    with pytest.raises(DeclarationError, match="3 inputs and 2 targets"):
        model.fit([1, 2, 3], [1, 2], objective=cross_entropy)
    with pytest.raises(TrainingError, match="0 rows"):
        model.fit([], [], objective=cross_entropy)
    with pytest.raises(DeclarationError, match="there is no argument 'epochs'"):
        model.fit([1], [1], objective=cross_entropy, epochs=3)
    model.trainer = "odd"
    with pytest.raises(DeclarationError, match="expected a TorchTrainer, got str"):
        model.fit([1], [1])
    with pytest.raises(DeclarationError, match="cannot be trained"):
        ObjectModel("m", len).fit([1], [1])


def table():
    """Points on either side of a line, with a column of numbers more."""
    numbers = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")
    frame = pd.DataFrame(numbers, columns=["a", "b"], index=range(100, 140))
    return frame, pd.Series((frame.a > 0).astype(int).to_numpy(), index=frame.index)


def by_name(a, b):
    return torch.tensor([a, b])


def by_row(row):
    return torch.as_tensor(row)


@pytest.mark.parametrize("preprocess", [None, by_name, by_row])
def test_a_dataframe_and_a_series_are_rows_and_targets(preprocess):
    """Not the names of its columns; a preprocess gets its columns by name, or an array."""
    X, y = table()  # noqa: N806 - scikit-learn's names
    model = TorchModel("m", torch.nn.Linear(2, 2), preprocess=preprocess, postprocess=lambda o: int(o.argmax()), **CPU)
    options = {**OPTIONS, "max_iterations": 200, "optimizer_kwargs": {"lr": 0.05}}
    model.fit(X, y, valid=(X, y), **options)
    assert accuracy(model.predict_batches(X), list(y)) > 0.9
    again = TorchModel("m", torch.nn.Linear(2, 2), preprocess=preprocess, **CPU)
    if preprocess is not by_row:
        again.fit(X.head(2), y.head(2), **options)  # as many rows as columns
    if preprocess is by_name:
        again.fit(X.assign(y=y), **options)  # the last column is the target
    if preprocess is None:
        with pytest.raises(DeclarationError, match=r"no array of numbers \(a: float32, b: "):
            again.fit(X.assign(b="x"), y, **options)


def test_an_objects_dataframe_has_rows_too():
    """An estimator's are named, as it has learned them."""
    X, y = table()  # noqa: N806
    model = ObjectModel("m", LogisticRegression()).fit(X, y)
    assert model.predict_batches(X) == list(model.object.predict(X))
    assert ObjectModel("m", lambda a, b: a + b).predict_batches(X) == pytest.approx(list(X.a + X.b))
    assert ObjectModel("m", lambda row: row.sum()).predict_batches(X) == pytest.approx(list(X.a + X.b))


def test_the_trainer_that_fit_has_made_is_not_applied():
    """It names no rows of a table; one that does is."""
    model = TorchModel("m", torch.nn.Linear(2, 2), **CPU)
    X, y = table()  # noqa: N806
    for _ in range(2):
        model.fit(X, y, **OPTIONS)
        assert model.trainer.metric_steps == [10, 20, 30]
        assert model.applied_trainer is None
    model.trainer = TorchTrainer("t", cross_entropy)  # it lacks a table: `apply` refuses it
    assert model.applied_trainer is model.trainer
