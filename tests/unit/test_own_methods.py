"""What a user put in place of predictd's own parts: a method that the daemon would not have, an argument that was
changed after the component was made.
"""

from __future__ import annotations

import copy
import functools
import types

import pytest
import torch

from components import Dataset, DeclarationError, Fit, LoopTrainer, Metric, ObjectModel, Query, Validation
from components.serialization import declare
from components.torch import TorchModel, TorchTrainer


def test_methods_of_a_base_class_are_named():
    """Those of a mixin, of a class between, a partialmethod."""

    class Mixin:
        def fit(self) -> None:
            raise AssertionError

    class Mixed(Mixin, TorchTrainer):
        pass

    class Between(TorchTrainer):
        validate = functools.partialmethod(print, 1)

    class Lowest(Between):
        pass

    for kind, name in ((Mixed, "fit"), (Between, "validate"), (Lowest, "validate")):
        trainer = kind("t", torch.nn.functional.mse_loss, Query("t"), ["x", "y"])
        with pytest.raises(DeclarationError, match=f"the class {kind.__name__}; its own {name} would not run"):
            declare(trainer, model="m")


def _theirs(self, *args):
    raise AssertionError


@functools.wraps(TorchTrainer.replaced)
def _wrapped(self, **changes):
    raise AssertionError


@pytest.mark.parametrize(
    ("kind", "name", "method"),
    [
        (TorchTrainer, "fit", _theirs),
        (TorchTrainer, "replaced", _wrapped),
        (TorchModel, "predict", torch.no_grad()(_theirs)),
        (ObjectModel, "infer", functools.partialmethod(_theirs, 1)),
        (Validation, "evaluate", staticmethod(_theirs)),
        (Validation, "names", property(_theirs)),
        (Metric, "__call__", _theirs),
        (Dataset, "chosen", classmethod(_theirs)),
        (Fit, "run", _theirs),
    ],
)
def test_a_method_that_was_assigned_to_a_class_is_refused(monkeypatch, kind, name, method):
    """The daemon's class has its own, however the user's was made."""
    trainer = TorchTrainer("t", torch.nn.functional.mse_loss, Query("t"), ["x", "y"])
    validation = Validation("v", ["x", "y"], [Dataset("d", Query("t"))], [Metric("mse", len)], model="m")
    looped = LoopTrainer("t", None, Query("t"), ["x", "y"])
    components = [TorchModel("m", torch.nn.Linear(1, 1)), ObjectModel("m", len), trainer, looped, validation]
    for component in components:
        declare(component, model="m")
    monkeypatch.setattr(kind, name, method, raising=False)
    with pytest.raises(DeclarationError, match=f"the {name} that was assigned to the class"):
        list(map(functools.partial(declare, model="m"), components))


@pytest.mark.parametrize(
    ("kind", "name"), [(torch.nn.Linear, "forward"), (torch.nn.Module, "__call__"), (torch.nn.Module, "extra_repr")]
)
def test_a_replaced_method_of_a_librarys_class_is_refused(monkeypatch, kind, name):
    """Also below a user's own class. The daemon imports the class with its own method; a new one that replaces none,
    and one of an object, do no harm.
    """

    class Own(torch.nn.Linear):
        pass

    monkeypatch.setattr(torch.nn.Linear, "helper", _theirs, raising=False)
    net = torch.nn.Linear(1, 1)
    net.forward = types.MethodType(lambda self, x: x * self.weight, net)
    assert declare(TorchModel("m", net))
    monkeypatch.setattr(kind, name, _theirs)
    for module in (torch.nn.Linear(1, 1), Own(1, 1)):
        with pytest.raises(DeclarationError, match=rf"models\.m\.object: .* the {name} of torch\.nn.* was replaced"):
            declare(TorchModel("m", module))


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("key", "x..y", "key: 'x..y' is no field"),
        ("select", "rows", r"select: expected a query"),
        ("objective", "mse", "objective: expected a callable"),
        ("optimizer_cls", "Sgd", r"optimizer_cls: expected an optimizer"),
        ("optimizer_kwargs", {"rate": 1}, "optimizer_kwargs: Adam takes no 'rate'"),
        ("loader_kwargs", {"batch_size": "8"}, "loader_kwargs: batch_size: expected a whole number"),
        ("transform", 3, "transform: expected a callable"),
        ("max_iterations", 0, "max_iterations: it must be a whole number"),
    ],
)
def test_an_argument_that_was_changed_later_counts_and_is_checked(attribute, value, message):
    """As if the trainer had been made with it."""
    trainer = TorchTrainer("t", torch.nn.functional.mse_loss, Query("t"), ["x", "y"])
    trainer.key, trainer.optimizer_cls, trainer.max_iterations = ["a", "b"], "AdamW", 7
    declared = declare(trainer, model="m").declaration
    assert (declared.key, declared.optimizer, declared.max_iterations) == (["a", "b"], "torch.optim.adamw:AdamW", 7)
    assert trainer.replaced(seed=3).max_iterations == 7
    trainer.optimizer_cls = torch.optim.Adam
    setattr(trainer, attribute, value)
    with pytest.raises(DeclarationError, match=message):
        declare(trainer, model="m")


def test_a_changed_part_of_a_model_or_a_validation_is_checked():
    """By its name, and what fits counts."""
    for model, attribute, value in [
        (ObjectModel("m", len), "object", 3),
        (ObjectModel("m", len), "postprocess", "text"),
        (ObjectModel("m", len), "forward_method", "predict"),
        (TorchModel("m", torch.nn.Linear(1, 1)), "object", torch.nn.Linear),
        (TorchModel("m", torch.nn.Linear(1, 1)), "preprocess_batch", 3),
    ]:
        setattr(model, attribute, value)
        with pytest.raises(DeclarationError, match=f"model 'm': {attribute}: "):
            declare(model)
    mse = Metric("mse", len)
    validation = Validation("v", ["x", "y"], [Dataset("d", Query("t"))], [mse], model="m")
    validation.key, validation.when = ["q", "r"], [{"every": 60}]
    assert declare(validation).declaration.key == ["q", "r"]
    mse.object = "MeanSquaredError"
    assert declare(validation).declaration.metrics["mse"].object == "torchmetrics:MeanSquaredError"
    for attribute, value in (("metrics", []), ("datasets", Query("t")), ("key", 3), ("when", "daily")):
        changed = copy.copy(validation)
        setattr(changed, attribute, value)
        with pytest.raises(DeclarationError, match=rf"validation 'v': {attribute}: "):
            declare(changed)
    mse.object = 3
    with pytest.raises(DeclarationError, match="metric 'mse': object: expected a callable"):
        declare(validation)
