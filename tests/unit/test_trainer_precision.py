"""Mixed precision: steps in float16 or bfloat16, weights in float32, and all of it bit for bit after a kill."""

from __future__ import annotations

import pytest
import torch
from harness.interruptions import Killed, killed_at, outcome
from harness.training_script import model, trained
from torch.nn.functional import cross_entropy

from components import DeclarationError, TrainingError
from components.torch import Checkpoints, TorchTrainer

SHORT = {"max_iterations": 9, "validation_interval": 4}
PRECISIONS = ["bfloat16", "float16"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_computes_in_the_precision_and_nothing_else_does(precision):
    """The weights, the gradients and what is measured stay in float32."""
    net, seen = model(), {}
    net.object.head.register_forward_hook(lambda part, _, out: seen.setdefault(part.training, set()).add(out.dtype))
    result = trained(None, {**SHORT, "mixed_precision": precision}, net)
    assert seen == {True: {getattr(torch, precision)}, False: {torch.float32}}
    assert {tensor.dtype for tensor in result.state.values() if tensor.is_floating_point()} == {torch.float32}
    assert outcome(result) != outcome(trained(None, SHORT))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("changes", [{}, {"gradient_clip": 0.1, "accumulate": 2, "ema": 0.9}])
def test_it_resumes_bit_for_bit(precision, changes, tmp_path):
    """The scale of the gradients is in the checkpoint."""
    mixed = {**SHORT, "mixed_precision": precision, **changes}
    undisturbed = outcome(trained(None, mixed))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Killed):
        trained(checkpoints, mixed, stopped=killed_at(6))
    assert outcome(trained(checkpoints, mixed)) == undisturbed


def overflowing(output, target):
    """Its gradients are not finite in float16 as long as the loss is scaled much."""
    return cross_entropy(output.float(), target) * 2.0**14


def test_a_step_without_finite_gradients_is_left_out_and_the_scale_lowered():
    """The first steps meet the largest scale; what follows learns, also if the gradients are limited."""
    for limit in (None, 1.0):
        mixed = {"max_iterations": 30, "validation_interval": 30, "mixed_precision": "float16", "gradient_clip": limit}
        result = trained(None, {**mixed, "objective": overflowing, "optimizer_kwargs": {"lr": 1e-3}})
        assert all(torch.isfinite(tensor).all() for tensor in result.state.values())
        assert result.state["body.1.num_batches_tracked"] == 30


class Vanishing(torch.autograd.Function):
    """Its gradient is no number, at any scale."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def test_gradients_that_are_never_finite_end_the_training():
    """They would be left out for ever, without a word."""
    mixed = {"max_iterations": 100, "validation_interval": 100, "mixed_precision": "float16"}
    with pytest.raises(TrainingError, match="gradients are not finite in float16, however small the loss is scaled"):
        trained(None, {**mixed, "objective": lambda y, t: cross_entropy(Vanishing.apply(y), t)})


def test_another_precision_is_refused():
    """With those that there are."""
    with pytest.raises(DeclarationError, match='mixed_precision: it must be "float16" or "bfloat16"'):
        TorchTrainer("net", cross_entropy, mixed_precision="float8")
