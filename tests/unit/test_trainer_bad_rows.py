"""Rows that cannot be prepared: passed over up to a share, counted and named; beyond it the training fails."""

from __future__ import annotations

import pytest
import torch
from harness.interruptions import Killed, killed_at, outcome
from harness.training_script import ROWS, model, rows, trained
from harness.training_script import transform as prepared

from components import DeclarationError, TrainingError
from components.examples import ListExamples
from components.torch import Checkpoints, TorchModel, TorchTrainer, train

SHORT = {"max_iterations": 60, "validation_interval": 20}
BAD = (3, 77)


FIRSTS = tuple(x[0] for x, _ in rows(ROWS, 1).fetch(BAD))


def refuses(x, y):
    """A transform that changes every row in place, and then fails on two of them."""
    first = x[0]
    made = prepared(x, y)
    if first in FIRSTS:
        raise ValueError("truncated")
    return made


def killed_and_resumed(changes, kill, folder):
    """What a training that is killed once ends with."""
    with pytest.raises(Killed):
        trained(Checkpoints(folder), changes, stopped=killed_at(kill))
    return trained(Checkpoints(folder), changes)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_passed_over_and_named_once(workers, tmp_path):
    """In two epochs, and the same after a kill, bit for bit."""
    loader = {"batch_size": 8, "num_workers": workers}
    changes = {**SHORT, "transform": refuses, "skip_bad_rows": 0.01, "loader_kwargs": loader}
    told = []
    undisturbed = trained(None, changes, report=told.append)
    reasons = [each["message"] for each in told if "message" in each]
    assert sorted(reasons) == [f"passed over: transform failed on row {place}: ValueError: truncated" for place in BAD]
    assert sorted(undisturbed.bad_rows) == [reason.removeprefix("passed over: ") for reason in sorted(reasons)]
    for kill in (10, 45):
        resumed = killed_and_resumed(changes, kill, tmp_path / str(kill))
        assert outcome(resumed) == outcome(undisturbed)
        assert resumed.bad_rows == undisturbed.bad_rows


def test_the_other_rows_of_a_batch_are_learned_from_as_if_the_bad_one_were_gone():
    """A deleted row and a bad row leave the same weights: nothing else of the batch is lost or prepared twice."""
    whole = list(rows(ROWS, 1).fetch(range(ROWS)))
    gone = ListExamples([None if place in BAD else row for place, row in enumerate(whole)])
    options = {**SHORT, "loader_kwargs": {"batch_size": 8}}

    def learned(examples, **changes):
        net = model()
        objective = torch.nn.functional.cross_entropy
        result = train(net, TorchTrainer("t", objective, **options, **changes), examples)
        return outcome(result)

    bad = learned(ListExamples(rows(ROWS, 1).fetch(range(ROWS))), transform=refuses, skip_bad_rows=0.5)
    assert bad == learned(gone, transform=prepared)


@pytest.mark.parametrize(("share", "n"), [(0.009, 2), (0.0, 1)])
def test_more_bad_rows_than_the_share_fail_the_training(share, n):
    """With both figures and a reason; by default one is enough, and is named as ever."""
    message = {
        2: r"2 of 203 rows cannot be prepared, which is more than skip_bad_rows = 0\.009; the last one: transform "
        r"failed on row \d+: ValueError: truncated",
        1: r"^transform failed on row \d+: ValueError: truncated$",
    }[n]
    with pytest.raises(TrainingError, match=message):
        trained(None, {**SHORT, "transform": refuses, "skip_bad_rows": share})


def line(n=40):
    """Rows of y = 2x + 1."""
    return ListExamples([(i / n, 2 * i / n + 1) for i in range(n)])


def preprocess(x):
    """Fails on the first row."""
    if x == 0:
        raise OSError("no picture")
    return torch.tensor([x])


def preprocess_batch(xs):
    """Fails on every batch with the first row."""
    return torch.stack([preprocess(x) for x in xs])


@pytest.mark.parametrize("step", ["preprocess", "preprocess_batch"])
@pytest.mark.parametrize("apart", [None, 10])
def test_a_models_own_preprocess_may_fail_too(step, apart):
    """A row at a time or a batch at a time; in the rows that are kept apart for the loss as well."""
    torch.manual_seed(0)
    code = {"preprocess": preprocess, "preprocess_batch": preprocess_batch}
    net = TorchModel("m", torch.nn.Linear(1, 1), **{step: code[step]}, preferred_devices=("cpu",))
    mse = torch.nn.functional.mse_loss
    options = {"max_iterations": 10, "loader_kwargs": {"batch_size": 8}, "skip_bad_rows": 0.1}
    trainer = TorchTrainer("m", lambda output, target: mse(output.squeeze(1), target), **options)
    told = []
    result = train(net, trainer, line(), None if apart is None else line(apart), report=told.append)
    assert result.bad_rows == [f"{step} failed on row 0: OSError: no picture"]
    assert sum("passed over" in each.get("message", "") for each in told) == (1 if apart is None else 2)


@pytest.mark.parametrize("step", ["preprocess", "preprocess_batch"])
def test_only_bad_rows_fail_at_once(step):
    """Whole batches of them do not hide how many there are."""
    code = {"preprocess": preprocess, "preprocess_batch": preprocess_batch}
    net = TorchModel("m", torch.nn.Linear(1, 1), **{step: code[step]}, preferred_devices=("cpu",))
    trainer = TorchTrainer("m", torch.nn.functional.mse_loss, skip_bad_rows=0.5)
    with pytest.raises(TrainingError, match=rf"21 of 40 rows cannot be prepared.*{step} failed on row"):
        train(net, trainer, ListExamples([(0.0, 1.0)] * 40))


@pytest.mark.parametrize("share", [-0.1, 1.0, "1%", None, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    """The error names the argument."""
    with pytest.raises(DeclarationError, match="skip_bad_rows: it must be a share of the rows"):
        TorchTrainer("t", len, skip_bad_rows=share)
