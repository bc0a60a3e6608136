"""Modules of unusual kinds are trained as they are, and a kill changes no bit of them."""

from __future__ import annotations

import functools

import pytest
import torch
from harness.interruptions import Killed, killed_at, outcome
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations

from components import DeclarationError, ListExamples, TrainingError
from components.torch import Checkpoints, TorchModel, TorchTrainer, train, weights

LINES = [torch.randint(0, 11, (4,), generator=torch.Generator().manual_seed(n)) for n in range(24)]


class Tied(torch.nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.words, self.drop, self.out = torch.nn.Embedding(11, 6), torch.nn.Dropout(0.2), torch.nn.Linear(6, 11)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(self.drop(self.words(x)))


class Shared(torch.nn.Module):
    """One layer at two places."""

    def __init__(self):
        super().__init__()
        layer = torch.nn.Linear(6, 6)
        self.words, self.layers = torch.nn.Embedding(11, 6), torch.nn.ModuleList([layer, torch.nn.Tanh(), layer])
        self.out = torch.nn.Linear(6, 11)

    def forward(self, x):
        return self.out(functools.reduce(lambda y, layer: layer(y), self.layers, self.words(x)))


def normed(norm):
    return torch.nn.Sequential(torch.nn.Embedding(11, 6), norm(torch.nn.Linear(6, 6)), torch.nn.Linear(6, 11))


KINDS = {
    "tied": Tied,
    "shared": Shared,
    "weight_norm": functools.partial(normed, parametrizations.weight_norm),
    "spectral_norm": functools.partial(normed, parametrizations.spectral_norm),
    "orthogonal": functools.partial(normed, parametrizations.orthogonal),
}


def each_word(output, target):
    return cross_entropy(output.flatten(0, 1), target.flatten())


def trained(kind, checkpoints=None, stopped=None, **options):
    torch.manual_seed(0)
    model = TorchModel("m", KINDS[kind](), preferred_devices=("cpu",))
    usual = {"key": "text", "max_iterations": 8, "validation_interval": 3, "checkpoint_seconds": 0}
    trainer = TorchTrainer("m", each_word, loader_kwargs={"batch_size": 6}, **(usual | options))
    rows = ListExamples([(line,) for line in LINES])
    return model, train(model, trainer, rows, rows, checkpoints=checkpoints, stopped=stopped)


@pytest.mark.parametrize("options", [{}, {"ema": 0.5, "mixed_precision": "bfloat16", "gradient_clip": 0.5}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_and_resumes_bit_for_bit(kind, options, tmp_path):
    """One field is input and target, so the preprocess of neither may see the other."""
    _, undisturbed = trained(kind, **options)
    losses = undisturbed.metric_values["valid/loss"]
    assert losses[-1] < losses[0] or options
    with pytest.raises(Killed):
        trained(kind, Checkpoints(tmp_path), killed_at(9), **options)
    _, resumed = trained(kind, Checkpoints(tmp_path), **options)
    assert outcome(resumed) == outcome(undisturbed)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_gives_the_same_outputs(kind):
    """Tied weights are stored once, and are tied again."""
    model, result = trained(kind)
    fresh = TorchModel("m", KINDS[kind](), preferred_devices=("cpu",))
    fresh.unpack(weights.save(result.state))
    assert all(torch.equal(fresh.predict(line), model.predict(line)) for line in LINES)
    if kind == "tied":
        assert fresh.object.out.weight is fresh.object.words.weight


def test_a_parameter_with_two_names_is_frozen_by_either():
    """And then it does not move."""
    torch.manual_seed(0)
    before = Tied().words.weight.detach().clone()
    for name in ("words.weight", "out.weight"):
        model, _ = trained("tied", freeze=[name])
        assert torch.equal(model.object.words.weight, before)


def test_a_module_without_its_parameters_yet_is_refused():
    """A lazy layer has none before its first batch: neither a version nor an optimizer could hold them."""
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(3))
    with pytest.raises(DeclarationError, match=r"object: 0.weight has no shape yet.*call the module with a batch"):
        TorchModel("m", lazy)
    lazy(torch.zeros(2, 5))
    assert TorchModel("m", lazy).predict(torch.zeros(5)).shape == (3,)


def test_an_optimizer_that_asks_for_the_loss_again_is_refused():
    """Also a subclass, and one that a function makes."""

    class Closure(torch.optim.LBFGS):
        pass

    with pytest.raises(DeclarationError, match="Closure evaluates the loss several times in a step"):
        TorchTrainer("m", each_word, optimizer_cls=Closure)
    with pytest.raises(TrainingError, match="LBFGS evaluates the loss several times in a step"):
        trained("tied", optimizer_cls=lambda named_parameters: torch.optim.LBFGS([p for _, p in named_parameters]))
