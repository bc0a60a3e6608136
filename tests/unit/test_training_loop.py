"""Own training loops: what they are given, what they may ask for, and that they resume bit for bit."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from harness.interruptions import Killed, killed_at
from harness.training_script import model, rows, transform
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from components import DeclarationError, ListExamples, LoopTrainer, Stopped, TrainingError, TrainingLoop
from components.torch import Checkpoints, TorchModel, weights
from components.training_loop import run

EPOCHS = 3


class Plain(TrainingLoop):
    """A loop as people write it: epochs, an optimizer with a state, a schedule, dropout, a checkpoint an epoch."""

    def __init__(self, lr=0.01):
        self.lr = lr

    def run(self, training):
        optimizer = torch.optim.Adam(training.module.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        done = training.restored or {"epoch": 0}
        if training.restored:
            optimizer.load_state_dict(done["optimizer"])
            schedule.load_state_dict(done["schedule"])
        for epoch in range(done["epoch"], EPOCHS):
            training.module.train()
            for given, target in DataLoader(training.rows, batch_size=16, shuffle=True):
                loss = cross_entropy(training.module(given), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                training.report(loss=loss.item(), total=EPOCHS * 5)
            schedule.step()
            training.measure()
            state = {"epoch": epoch + 1, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            training.checkpoint(state)


def trained(loop, checkpoints=None, net=None, **hooks):
    net = net or model()
    trainer = LoopTrainer("t", loop, key=("x", "y"), transform=transform, seed=hooks.pop("seed", 3))
    evaluate = hooks.pop("evaluate", lambda: {"v/score": float(net.state()["head.bias"].sum()) + torch.rand(()).item()})
    result = run(net, trainer, rows(70, 1), evaluate=evaluate, checkpoints=checkpoints, **hooks)
    return weights.content_hash(net.state()), result.metric_values, result.metric_steps, result.best_step, result.step


def test_a_loop_trains_the_model_and_leaves_its_history():
    """With the seed's randomness; the caller's generators are as before."""
    net, before = model(), torch.random.get_rng_state()
    result = trained(Plain(), net=net)
    assert torch.equal(before, torch.random.get_rng_state())
    assert result[1:3] == (result[1], [5, 10, 15])
    assert set(result[1]) == {"v/score", "train/loss"}
    assert result == trained(Plain())
    assert result != trained(Plain(), seed=4)
    assert result[0] != weights.content_hash(model().state())


@pytest.mark.parametrize("kill", [0, 4, 5, 7, 12, 14])
def test_a_loop_resumes_bit_for_bit(kill, tmp_path):
    """From its last checkpoint; the model's weights and all generators are ours to restore."""
    undisturbed = trained(Plain())
    with pytest.raises(Killed):
        trained(Plain(), Checkpoints(tmp_path), stopped=killed_at(kill))
    assert trained(Plain(), Checkpoints(tmp_path)) == undisturbed


def test_the_best_measured_weights_are_kept():
    """By the first metric, its direction, and never by NaN; without a metric, the last ones."""
    for values, best in (([1, 3, 2], 10), ([3, math.nan, 1], 5), ([math.nan] * 3, 15)):
        measured = iter(values)
        *_, chosen, last = trained(Plain(), evaluate=lambda measured=measured: {"v/acc": float(next(measured))})
        assert (chosen, last) == (best, 15)
    measured = iter([1, 3, 2])
    down = trained(
        Plain(), evaluate=lambda: {"v/mse": float(next(measured))}, greater_is_better=lambda name: name != "v/mse"
    )
    assert down[3] == 5


def test_a_daemon_that_stops_ends_the_loop_at_its_next_report():
    """Also if a framework wraps the exception, and a loop may look by itself."""

    class Wrapping(TrainingLoop):
        def run(self, training):
            assert training.stopping == "the daemon stops"
            try:
                training.report()
            except Stopped as stopped:
                raise RuntimeError("the framework failed") from stopped

    with pytest.raises(Stopped, match="the daemon stops"):
        trained(Wrapping(), stopped=lambda: "the daemon stops")


@pytest.mark.parametrize("how", ["returns", "catches", "exits"])
def test_a_loop_that_ends_early_because_the_daemon_stops_makes_no_version(how):
    """It has looked at `stopping`, or a framework has caught the exception and returned, or exited."""

    def ends(training):
        with torch.no_grad():
            training.module.head.bias.add_(1)
        if how != "returns" or training.stopping is None:
            try:
                training.report()
            except Stopped:
                if how == "exits":
                    raise SystemExit(0) from None

    with pytest.raises(Stopped, match="the daemon stops"):
        trained(Does(ends), stopped=lambda: "the daemon stops", evaluate=dict)


class Does(TrainingLoop):
    """A loop that does one thing."""

    def __init__(self, what):
        self.what = what

    def run(self, training):
        self.what(training)


def spoiled(training):
    with torch.no_grad():
        training.module.head.bias.fill_(math.nan)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda _: None, "changed no weight"),
        (spoiled, r"weight 'head.bias' is no longer finite"),
        (lambda _: 1 / 0, "step 0: the loop Does raised ZeroDivisionError"),
        (lambda _: sys.exit(3), "step 0: the loop Does raised SystemExit: 3"),
        (lambda training: training.report(loss=math.nan), "step 1: the loss is nan"),
        (lambda training: training.checkpoint({"f": open}), "the checkpoint could not be read again"),
    ],
)
def test_a_loop_that_fails_is_told_of(what, message, tmp_path):
    """Nothing that it leaves becomes a version."""
    with pytest.raises(TrainingError, match=message):
        trained(Does(what), Checkpoints(tmp_path))


def test_a_measurement_leaves_the_modes_of_the_parts():
    """A loop may have frozen some."""

    def look(training):
        training.module.body.eval()
        training.measure()
        modes = [part.training for part in training.module.modules()]
        assert modes == [True, *[False] * 5, True]
        with torch.no_grad():
            training.module.head.bias.add_(1)

    net = model()
    predict = lambda: {"v/a": float(net.predict(np.zeros(12))[0])}  # noqa: E731
    trained(Does(look), net=net, evaluate=predict)


def test_rows_that_are_gone_are_left_out():
    """Of batches and iterations; one by itself is an error that says so, and so is one that cannot be prepared."""
    seen = {}

    def look(training):
        seen["all"] = [y for _, y in training.rows]
        seen["batches"] = [y.tolist() for _, y in DataLoader(training.rows, batch_size=2)]
        with pytest.raises(TrainingError, match="row 1 is gone"):
            training.rows[1]
        with torch.no_grad():
            training.module.weight.add_(1)

    def picky(x):
        if x == 3.0:
            raise ValueError("no such value")
        return torch.tensor([x])

    net = TorchModel("m", torch.nn.Linear(1, 1), preprocess=picky)
    trainer = LoopTrainer("t", Does(look), key=("x", "y"))
    run(net, trainer, ListExamples([(0.0, 0), None, (2.0, 2)]))
    assert seen == {"all": [0, 2], "batches": [[0], [2]]}
    with pytest.raises(TrainingError, match="row 1 cannot be prepared: ValueError: no such value"):
        run(net, trainer, ListExamples([(0.0, 0), (3.0, 3)]))


def test_what_is_no_loop_is_refused():
    """A class, a function, an argument that only torch's own loop has."""
    for given in (Plain, len, "loop"):
        with pytest.raises(DeclarationError, match="loop: expected an instance of a subclass of TrainingLoop"):
            LoopTrainer("t", given)
    with pytest.raises(DeclarationError, match="there is no argument 'ema'"):
        LoopTrainer("t", Plain(), ema=0.9)
