"""Moving averages of the weights: measured and kept in place of the weights, bit for bit after a kill."""

from __future__ import annotations

import pytest
import torch
from harness.interruptions import Killed, killed_at, outcome
from harness.training_script import model, trained
from torch.nn.functional import mse_loss

from components import DeclarationError, Stopped
from components.examples import ListExamples
from components.torch import Checkpoints, TorchModel, TorchTrainer, train

SHORT = {"max_iterations": 9, "validation_interval": 4}


def line_trained(ema, evaluate=None, seen=None):
    """Train a line by ten steps; `seen` receives the weight after each step."""
    torch.manual_seed(0)
    net = TorchModel("m", torch.nn.Linear(1, 1), preprocess=lambda x: torch.tensor([x]), preferred_devices=("cpu",))
    plain = {"optimizer_cls": "SGD", "optimizer_kwargs": {"lr": 0.1}, "max_iterations": 10, "validation_interval": 5}

    def objective(output, target):
        if seen is not None and net.object.training:
            seen.append(net.object.weight.item())
        return mse_loss(output.squeeze(1), target)

    rows = ListExamples([(i / 40, i / 20 + 1) for i in range(40)])
    trainer = TorchTrainer("m", objective, ema=ema, **plain)
    measure = None if evaluate is None else lambda: evaluate(net.object.weight.item())
    return train(net, trainer, rows, evaluate=measure), net


def averaged(values, decay):
    """What the averages are after each step, by hand; the first value is the initial weight."""
    average, found = values[0], []
    for step, value in enumerate(values[1:], 1):
        kept = min(decay, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * value
        found.append(average)
    return found


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_averages_of_the_weights_are_kept_and_measured(decay):
    """The training itself goes on with its weights; the model ends with the averages."""
    steps, plain = [], line_trained(None)
    result, net = line_trained(decay, seen=steps)
    expected = averaged([*steps, plain[0].state["weight"].item()], decay)
    assert result.state["weight"].item() == pytest.approx(expected[-1], rel=1e-5)
    assert net.object.weight.item() == result.state["weight"].item()
    measured = []
    best, _ = line_trained(decay, lambda weight: measured.append(weight) or {"v/error": weight})
    assert measured == pytest.approx([expected[4], expected[9]], rel=1e-5)
    assert best.state["weight"].item() == pytest.approx(min(measured), rel=1e-5)


@pytest.mark.parametrize("more", [{}, {"listen": "train/loss"}, {"freeze": ["body.*"]}])
@pytest.mark.parametrize("kill", [5, 14, 19])
def test_averages_go_on_bit_for_bit_after_a_kill(kill, more, tmp_path):
    """Before a step, and in the midst of a validation, which has put the averages into the model."""
    changes = {**SHORT, "ema": 0.9, **more}
    undisturbed = outcome(trained(None, changes))
    with pytest.raises(Killed):
        trained(Checkpoints(tmp_path), changes, stopped=killed_at(kill))
    told = []
    assert outcome(trained(Checkpoints(tmp_path), changes, report=told.append)) == undisturbed
    assert told[0]["message"].startswith("the training goes on after step")
    assert undisturbed != outcome(trained(None, {**SHORT, **more}))


def test_a_stop_in_the_midst_of_a_validation_saves_the_weights_and_not_their_averages(tmp_path):
    """The validation has put the averages into the model; the checkpoint is written after it was ended."""
    changes = {**SHORT, "ema": 0.9, "checkpoint_seconds": 3600}
    undisturbed = outcome(trained(None, changes))
    for call in (5, 7):
        calls = iter(range(1000))
        with pytest.raises(Stopped):
            trained(
                Checkpoints(tmp_path / str(call)),
                changes,
                stopped=lambda calls=calls, call=call: "enough" if next(calls) == call else None,
            )
        assert outcome(trained(Checkpoints(tmp_path / str(call)), changes)) == undisturbed


def test_frozen_weights_and_statistics_are_not_moved_by_averaging():
    """The average of equal numbers is that number, to the last bit."""
    net = model()
    before = net.state()
    result = trained(None, {**SHORT, "ema": 0.9, "freeze": ["body.*"]}, net)
    assert all(torch.equal(result.state[name], before[name]) for name in before if name.startswith("body."))
    assert not torch.equal(result.state["head.weight"], before["head.weight"])


def test_a_checkpoint_without_averages_is_not_used(tmp_path):
    """There is nothing to go on with."""
    with pytest.raises(Killed):
        trained(Checkpoints(tmp_path), SHORT, stopped=killed_at(9))
    told = []
    trained(Checkpoints(tmp_path), {**SHORT, "ema": 0.9}, report=told.append)
    assert told[0] == {"message": "the checkpoint is of another training, this one begins anew"}


@pytest.mark.parametrize("ema", [0, 1, -1, "0.9", True])
def test_a_part_that_is_none_is_refused(ema):
    """The error names the argument."""
    with pytest.raises(DeclarationError, match="ema: it must be a number between 0 and 1"):
        TorchTrainer("t", len, ema=ema)
