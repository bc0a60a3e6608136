"""Typos are told when something is declared or applied, with the nearest name."""

from __future__ import annotations

import pytest
import torch
from harness.declarations import declaration
from torch.nn.functional import mse_loss

from components import DeclarationError, Fit, Listener, LoopTrainer
from components.torch import TorchTrainer
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.references import refuse_dangling


def component(kind, name, **given):
    return Component(kind, name, "api", declaration(kind, **given), 1, "signature")


KNOWN = Catalog(
    tables={"rows": component("table", "rows", fields={"img": "pil_image", "label": "int", "x": "float", "y": "int"})},
    models={"m": component("model", "m"), "n": component("model", "n")},
    validations={
        "v": component("validation", "v", datasets={"valid": {"table": "rows"}}),
        "w": component("validation", "w", model="n"),
    },
)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("listener", {"key": "image"}, "declares no field 'image'; did you mean `img`"),
        ("trainer", {"key": ["image", "label"]}, "declares no field 'image'; did you mean `img`"),
        ("trainer", {"key": ["img", "lable"]}, "declares no field 'lable'; did you mean `label`"),
        ("trainer", {"key": "imgs"}, "declares no field 'imgs'; did you mean `img`"),
        ("trainer", {"weighted_by": "lable"}, "declares no field 'lable'; did you mean `label`"),
        ("trainer", {"balanced_by": "lable"}, "declares no field 'lable'; did you mean `label`"),
        ("trainer", {"table": "row"}, "table 'row' is not applied; did you mean 'rows'"),
        (
            "trainer",
            {"listen": "valid/ac"},
            "listen: no validation of model 'm' gives 'valid/ac'; did you mean `valid/acc`",
        ),
        ("trainer", {"listen": "d/acc"}, "listen: no validation of model 'm' gives 'd/acc'"),
        ("trainer", {"listen": "val/loss"}, "did you mean `valid/loss`"),
        ("trainer", {"promote_metric": "valid/ac"}, "promote_metric: no validation .*did you mean `valid/acc`"),
        ("trainer", {"when": [{"below": {"v/valid/ac": 0.9}}]}, r"when\[0\].below: .*did you mean `v/valid/acc`"),
        ("validation", {"key": ["img", "lable"]}, "declares no field 'lable'; did you mean `label`"),
        ("validation", {"datasets": {"d": {"table": "rwos"}}}, "table 'rwos' is not applied; did you mean `rows`"),
        ("validation", {"when": [{"below": {"w/d/ac": 0.9}}]}, r"when\[0\].below: .*did you mean `w/d/acc`"),
        ("listener", {"key": "_outputs.dgit.value"}, "listener 'dgit' is not applied"),
    ],
)
def test_what_is_applied_names_only_what_there_is(kind, given, message):
    """Fields, tables, metrics, the metrics of triggers."""
    with pytest.raises(DeclarationError, match=message):
        refuse_dangling(kind, "a", declaration(kind, **given), KNOWN)


@pytest.mark.parametrize(
    "given",
    [
        {"listen": "valid/acc", "promote_metric": "valid/acc"},
        {"promote_metric": "v/valid/acc", "listen": "train/loss"},
        {"promote_metric": "valid/loss", "when": [{"below": {"v/valid/acc": 0.9}}]},
    ],
)
def test_what_there_is_may_be_named(given):
    """In each form of a metric's name."""
    refuse_dangling("trainer", "m", declaration("trainer", **given), KNOWN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Listener("l", "t", "x", "m", retry={"attemps": 3}),
            "listener 'l': retry: there is no argument 'attemps'; did you mean 'attempts'",
        ),
        (
            lambda: Listener("l", "t", "x", "m", retry={"attempts": 0}),
            r"retry\.attempts: it must be a whole number of attempts, from 1 to 1,000",
        ),
        (
            lambda: TorchTrainer("t", mse_loss, when=[{"evry": "6h"}]),
            r"when\.0: there is no argument 'evry'; did you mean 'every'",
        ),
        (
            lambda: TorchTrainer("t", mse_loss, loader_kwarg={}),
            "no argument 'loader_kwarg'; did you mean 'loader_kwargs'",
        ),
        (lambda: TorchTrainer("t", mse_loss, max_iteration=3), "did you mean 'max_iterations'"),
        (lambda: TorchTrainer("t", mse_loss, loader_kwargs={"batchsize": 3}), "did you mean 'batch_size'"),
        (
            lambda: TorchTrainer("t", mse_loss, optimizer_kwargs={"weight_decya": 0.1}),
            "optimizer_kwargs: Adam takes no 'weight_decya'; did you mean 'weight_decay'",
        ),
        (
            lambda: TorchTrainer("t", mse_loss, scheduler_cls="StepLR", scheduler_kwargs={"stepsize": 3}),
            "scheduler_kwargs: StepLR takes no 'stepsize'; did you mean 'step_size'",
        ),
        (
            lambda: TorchTrainer("t", mse_loss, optimizer_cls=lambda params, rate: None, optimizer_kwargs={"rat": 1}),
            "takes no 'rat'; did you mean 'rate'",
        ),
        (lambda: LoopTrainer("t", Fit(), selcet=None), "no argument 'selcet'; did you mean 'select'"),
        (lambda: LoopTrainer("t", Fit(), promote_metrc="a"), "did you mean 'promote_metric'"),
        (lambda: Listener("l", "t", "k", "m", max_bach=3), "did you mean 'max_batch'"),
        (lambda: TorchTrainer("t", mse_loss, nonsense=3), "no argument 'nonsense'; the arguments are "),
    ],
)
def test_an_argument_that_there_is_not(make, message):
    """The message has the one that was meant."""
    with pytest.raises(DeclarationError, match=message):
        make()


def test_a_function_of_any_arguments_takes_any():
    """Its signature says so."""

    def make(params, **options):
        return torch.optim.SGD(params, **options)

    assert TorchTrainer("t", mse_loss, optimizer_cls=make, optimizer_kwargs={"lr": 1}).optimizer_kwargs == {"lr": 1}
