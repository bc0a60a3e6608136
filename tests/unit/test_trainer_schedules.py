"""Learning-rate schedules: torch's own classes, a step at a time, and bit for bit after a kill."""

from __future__ import annotations

import math

import pytest
import torch
from harness.interruptions import Killed, killed_at, outcome
from harness.training_script import trained
from torch.nn.functional import mse_loss
from torch.optim import lr_scheduler

from components import DeclarationError, TrainingError
from components.examples import ListExamples
from components.torch import Checkpoints, TorchModel, TorchTrainer, train

SHORT = {"max_iterations": 9, "validation_interval": 4}
SCHEDULES = {
    "ConstantLR": {"factor": 0.5, "total_iters": 4},
    "CosineAnnealingLR": {"T_max": 9},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.1, "step_size_up": 3, "cycle_momentum": False},
    "ExponentialLR": {"gamma": 0.7},
    "LinearLR": {"start_factor": 0.1, "total_iters": 6},
    "MultiStepLR": {"milestones": [2, 7], "gamma": 0.1},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 9},
    "PolynomialLR": {"total_iters": 12},
    "StepLR": {"step_size": 2, "gamma": 0.5},
}


def warmed(optimizer, first):
    """A schedule of schedules, as users write them."""
    warmup = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=first)
    return lr_scheduler.SequentialLR(optimizer, [warmup, lr_scheduler.CosineAnnealingLR(optimizer, 6)], [first])


def halved(optimizer):
    """A schedule by a function, which is in no checkpoint."""
    return lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


def rates(**options):
    """The learning rate of each step, as the history has it."""
    torch.manual_seed(0)
    model = TorchModel("m", torch.nn.Linear(1, 1), preprocess=lambda x: torch.tensor([x]), preferred_devices=("cpu",))
    plain = {"optimizer_cls": "SGD", "optimizer_kwargs": {"lr": 0.1}, "max_iterations": 6, "validation_interval": 1}
    rows = ListExamples([(i / 40, i / 20) for i in range(40)])
    trainer = TorchTrainer("m", lambda y, t: mse_loss(y.squeeze(1), t), **plain, **options)
    return [record["learning_rate"] for record in train(model, trainer, rows).history]


def test_each_step_has_the_rate_that_the_schedule_gives_it():
    """The first step has the first rate, and the history names what a step used."""
    assert rates() == [0.1] * 6
    cosine = [0.1 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    found = rates(scheduler_cls="CosineAnnealingLR", scheduler_kwargs={"T_max": 6})
    assert found == pytest.approx(cosine)
    assert rates(scheduler_cls=halved) == pytest.approx([0.1 * 0.5**step for step in range(6)])


@pytest.mark.parametrize("kill", [5, 14])
@pytest.mark.parametrize(("schedule", "arguments"), [*SCHEDULES.items(), (warmed, {"first": 3}), (halved, {})])
def test_a_schedule_goes_on_bit_for_bit_after_a_kill(schedule, arguments, kill, tmp_path):
    """Its state is in the checkpoint, for each of torch's classes and for a function that makes one."""
    changes = {**SHORT, "scheduler_cls": schedule, "scheduler_kwargs": arguments}
    undisturbed = trained(None, changes)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Killed):
        trained(checkpoints, changes, stopped=killed_at(kill))
    told = []
    resumed = trained(checkpoints, changes, report=told.append)
    assert told[0]["message"].startswith("the training goes on after step")
    assert outcome(resumed) == outcome(undisturbed) != outcome(trained(None, SHORT))
    assert [each["learning_rate"] for each in resumed.history] == [
        each["learning_rate"] for each in undisturbed.history
    ]


def test_a_checkpoint_of_another_schedule_is_not_used(tmp_path):
    """Its state would mean something else."""
    with pytest.raises(Killed):
        trained(Checkpoints(tmp_path), SHORT, stopped=killed_at(9))
    told = []
    changes = {**SHORT, "scheduler_cls": "StepLR", "scheduler_kwargs": {"step_size": 2}}
    trained(Checkpoints(tmp_path), changes, report=told.append)
    assert told[0] == {"message": "the checkpoint is of another training, this one begins anew"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler_cls": "CosineLR"}, r"scheduler_cls: expected a schedule's class, or its name.*got 'CosineLR'"),
        ({"scheduler_cls": 3}, "scheduler_cls: expected a schedule's class"),
        ({"scheduler_cls": "Counter"}, "scheduler_cls: expected a schedule's class"),
        ({"scheduler_cls": "ReduceLROnPlateau"}, "scheduler_cls: ReduceLROnPlateau follows a metric"),
        ({"scheduler_cls": "StepLR", "scheduler_kwargs": 3}, "scheduler_kwargs: expected keyword arguments"),
        ({"scheduler_kwargs": {"T_max": 3}}, "scheduler_kwargs: there is no scheduler_cls that they are for"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(options, message):
    """The error names the argument."""
    with pytest.raises(DeclarationError, match=message):
        rates(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler_cls": "StepLR"}, "scheduler_kwargs: TypeError.*step_size"),
        ({"scheduler_cls": lambda _: 3}, "scheduler_cls: expected it to make a schedule.*got int"),
        ({"scheduler_cls": lr_scheduler.OneCycleLR, "scheduler_kwargs": {"max_lr": 1}}, "scheduler_kwargs: ValueError"),
        (
            {"scheduler_cls": lambda _: lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 1), 2)},
            "for the optimizer of its argument",
        ),
    ],
)
def test_a_schedule_that_cannot_be_built_fails_the_training(options, message):
    """The error names the argument and what the schedule said."""
    with pytest.raises(TrainingError, match=message):
        rates(**options)


def test_a_schedule_that_ends_before_the_training_fails_it():
    """One of three steps cannot say what the fourth is."""
    with pytest.raises(TrainingError, match=r"step 4: the schedule raised ValueError.*[Tt]ried to step"):
        rates(scheduler_cls="OneCycleLR", scheduler_kwargs={"max_lr": 0.1, "total_steps": 2})
