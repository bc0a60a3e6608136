"""Frozen parts: parameters without a gradient, batch statistics that stay, and all of it bit for bit after a kill."""

from __future__ import annotations

import pytest
import torch
from harness.interruptions import Killed, killed_at, outcome
from harness.training_script import model, trained

from components import DeclarationError, TrainingError
from components.torch import Checkpoints, TorchModel, TorchTrainer

SHORT = {"max_iterations": 9, "validation_interval": 4}


def moved(freeze, net=None, **changes):
    """The names of the tensors that a training changes."""
    net = net or model()
    before = net.state()
    result = trained(None, {**SHORT, "freeze": freeze, **changes}, net)
    return {name for name, tensor in result.state.items() if not torch.equal(tensor, before[name])}


STATISTICS = {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}
BODY = {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("freeze", "stays"),
    [
        ([], set()),
        (["body.*"], BODY | STATISTICS),
        (["body.1.*"], {"body.1.weight", "body.1.bias"} | STATISTICS),
        (["body.1.weight"], {"body.1.weight"}),  # a part of the layer still learns, so its statistics move
        (["*.bias"], {name for name in BODY | HEAD if name.endswith("bias")}),
        (["body.0.*", "head.bias"], {"body.0.weight", "body.0.bias", "head.bias"}),
        (["body.?.weight", "body.[01].bias"], BODY | STATISTICS),
    ],
)
def test_what_matches_stays_as_it_is_and_the_rest_learns(freeze, stays):
    """Weight decay and momentum do not move it either."""
    decaying = {"optimizer_cls": "SGD", "optimizer_kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}}
    assert moved(freeze, **decaying) == (BODY | HEAD | STATISTICS) - stays


def test_a_frozen_part_is_in_evaluation_mode_while_the_rest_trains():
    """Its dropout too; afterwards the caller's module is as it was."""
    net, modes = model(), []
    [*parts] = net.object.body
    net.object.head.register_forward_hook(
        lambda *_: modes.append([part.training for part in (*parts, net.object.head)])
    )
    moved(["body.*"], net)
    assert [False] * 4 + [True] in modes
    assert not any(any(mode[:4]) for mode in modes)
    assert all(weight.requires_grad for weight in net.object.parameters())
    assert all(weight.grad is None for weight in net.object.body.parameters())
    modes.clear()
    moved([], net)
    assert [True] * 5 in modes


def test_a_layer_without_parameters_is_frozen_by_its_buffers():
    """Batch statistics alone, without weights."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(12, 4), torch.nn.BatchNorm1d(4, affine=False), torch.nn.Linear(4, 3))

    def net():
        return TorchModel("n", module, preprocess=lambda x: torch.as_tensor(x).float(), preferred_devices=("cpu",))

    learned = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert moved(["1.*"], net()) == learned
    assert moved([], net()) == learned | {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_an_optimizer_that_holds_everything_moves_nothing_that_is_frozen():
    """A function of the user's own that does not use its argument."""
    net = model()
    whole = {"optimizer_cls": lambda _: torch.optim.SGD(net.object.parameters(), lr=0.1, weight_decay=0.1)}
    assert moved(["body.*"], net, **whole) == HEAD


def test_what_the_user_froze_stays_frozen():
    """A parameter that required no gradient before does not afterwards."""
    net = model()
    net.object.body[0].weight.requires_grad_(requires_grad=False)
    moved(["body.0.*"], net)
    assert [net.object.body[0].weight.requires_grad, net.object.body[0].bias.requires_grad] == [False, True]


@pytest.mark.parametrize("kill", [5, 14])
def test_a_training_with_frozen_parts_resumes_bit_for_bit(kill, tmp_path):
    """The optimizer holds the same parameters again."""
    changes = {**SHORT, "freeze": ["body.*"]}
    undisturbed = outcome(trained(None, changes))
    with pytest.raises(Killed):
        trained(Checkpoints(tmp_path), changes, stopped=killed_at(kill))
    told = []
    assert outcome(trained(Checkpoints(tmp_path), changes, report=told.append)) == undisturbed
    assert told[0]["message"].startswith("the training goes on after step")


def test_a_checkpoint_with_other_frozen_parts_is_not_used(tmp_path):
    """Its optimizer holds other parameters."""
    with pytest.raises(Killed):
        trained(Checkpoints(tmp_path), SHORT, stopped=killed_at(9))
    told = []
    trained(Checkpoints(tmp_path), {**SHORT, "freeze": ["body.*"]}, report=told.append)
    assert told[0] == {"message": "the checkpoint is of another training, this one begins anew"}


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["bodi.*"], r"freeze: 'bodi\.\*' matches no parameter or buffer of the model; the nearest is 'body\.\*'"),
        (["head"], r"freeze: 'head' matches no parameter.*the nearest is 'head\.\*'"),
        (["*"], "has no weights to train"),
    ],
)
def test_patterns_that_leave_nothing_or_match_nothing_fail_the_training(freeze, message):
    """With the nearest name; and every parameter is as it was."""
    net = model()
    with pytest.raises(TrainingError, match=message):
        moved(freeze, net)
    assert all(weight.requires_grad for weight in net.object.parameters())


@pytest.mark.parametrize("freeze", ["body.*", [3], [""], None])
def test_patterns_that_are_no_list_of_texts_are_refused(freeze):
    """The error names the argument."""
    with pytest.raises(DeclarationError, match=r"freeze.*: it must be "):
        TorchTrainer("t", len, freeze=freeze)
