"""Optimizers that get the parameters with their names."""

from __future__ import annotations

import functools

import pytest
import torch
from harness.interruptions import Killed, killed_at, outcome
from harness.training_script import model, trained

from components import TrainingError
from components.torch import Checkpoints

SHORT = {"max_iterations": 9, "validation_interval": 4}


def grouped(named_parameters, lr=0.1, decay=0.0):
    """Biases and norms without decay, as is usual, and the head at a rate of its own."""
    plain = [weight for name, weight in named_parameters if name.startswith("body.") and weight.ndim > 1]
    rest = [weight for name, weight in named_parameters if name.startswith("body.") and weight.ndim < 2]
    head = [(name, weight) for name, weight in named_parameters if name.startswith("head.")]
    groups = [{"params": plain, "weight_decay": decay}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    optimizer.add_param_group({"params": [weight for _, weight in head], "lr": 0.0})
    return optimizer


class Optimizers:
    """A bound method is a function too."""

    def make(self, named_parameters, **options):
        return grouped(named_parameters, **options)


@pytest.mark.parametrize("make", [grouped, functools.partial(grouped, decay=0.1), Optimizers().make])
def test_a_function_gets_names_if_it_asks_for_them(make, tmp_path):
    """Each group learns as it says; a kill in between changes no bit."""
    options = {**SHORT, "optimizer_cls": make, "optimizer_kwargs": {"lr": 0.05}}
    net = model()
    before = net.state()
    result = trained(None, options, net)
    learned = {name for name, weight in net.object.named_parameters() if not torch.equal(weight, before[name])}
    assert learned - {"body.0.bias"} == {"body.0.weight", "body.1.weight", "body.1.bias"}
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Killed):
        trained(checkpoints, {**options, "checkpoint_seconds": 0}, stopped=killed_at(6))
    assert outcome(trained(checkpoints, options)) == outcome(result)


def test_torchs_own_classes_take_names_through_a_function():
    """The names are in the optimizer's state."""
    made = {}

    def named(named_parameters):
        made["it"] = torch.optim.AdamW(named_parameters, lr=0.1)
        return made["it"]

    trained(None, {**SHORT, "optimizer_cls": named})
    assert made["it"].param_groups[0]["param_names"] == [name for name, _ in model().object.named_parameters()]


def test_a_frozen_parameter_is_not_among_the_names():
    """The optimizer cannot move it."""
    given = []

    def make(named_parameters):
        given.extend(name for name, _ in named_parameters)
        return torch.optim.SGD([weight for _, weight in named_parameters], lr=0.1)

    trained(None, {**SHORT, "optimizer_cls": make, "freeze": ["body.*"]})
    assert given == ["head.weight", "head.bias"]


def test_an_optimizer_without_the_models_parameters_is_refused():
    """Also if it was asked with names."""
    with pytest.raises(TrainingError, match="holds none of the model's parameters"):
        trained(None, {**SHORT, "optimizer_cls": lambda named_parameters: torch.optim.SGD([torch.zeros(1)], lr=0.1)})
