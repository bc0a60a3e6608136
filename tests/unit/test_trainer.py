"""The trainer: its declaration, exactly as many steps as it says, the best weights, and errors that name what is
wrong.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from components import DeclarationError, Metric, Stopped, TrainingError
from components.examples import ListExamples
from components.query import Query
from components.torch import TorchModel, TorchTrainer, train, weights
from components.torch.loss import valid_loss
from examples import mnist

CPU = {"preferred_devices": ("cpu",)}


def line(n=40):
    """Rows of y = 2x + 1."""
    return ListExamples([(x, 2 * x + 1) for x in (i / n for i in range(n))])


def linear(**options):
    """A model of one weight and one bias."""
    torch.manual_seed(0)
    return TorchModel("line", torch.nn.Linear(1, 1), **({"preprocess": lambda x: torch.tensor([x])} | CPU | options))


def squared(output, target):
    """The objective of the line."""
    return mse_loss(output.squeeze(1), target)


def trainer(**options):
    """A short training of the line."""
    defaults = {
        "objective": squared,
        "max_iterations": 10,
        "validation_interval": 3,
        "loader_kwargs": {"batch_size": 8},
    }
    return TorchTrainer("line", **(defaults | options))


def test_the_tutorials_training_has_exactly_its_steps_and_its_validations():
    """Ten steps, every third and the last one validated."""
    digits = mnist.digits(120, seed=3)
    torch.manual_seed(0)
    model = TorchModel("my-model", mnist.LeNet5(10), mnist.preprocess, mnist.postprocess, **CPU)
    model.predict(digits[0][0])
    before = weights.content_hash(model.state())
    told = []
    trained = train(
        model,
        TorchTrainer(
            identifier="my-trainer",
            objective=cross_entropy,
            loader_kwargs={"batch_size": 10},
            max_iterations=10,
            validation_interval=3,
            select=Query("mnist"),
            key=("img", "class"),
            transform=lambda x, y: (mnist.preprocess(x), y),
        ),
        ListExamples(digits[:100]),
        ListExamples(digits[100:]),
        evaluate=lambda: {"my-valid/acc": len(told) / 100},
        report=told.append,
    )
    assert (trained.step, trained.metric_steps) == (10, [3, 6, 9, 10])
    assert list(trained.metric_values) == ["my-valid/acc", "train/loss", "valid/loss"]
    assert all(len(trace) == 4 for trace in trained.metric_values.values())
    assert weights.content_hash(trained.state) != before
    assert weights.content_hash(model.state()) == weights.content_hash(trained.state)
    assert [record["step"] for record in trained.history] == [3, 6, 9, 10]
    assert trained.history[0]["learning_rate"] == 0.001
    assert trained.history[0]["device"] == "cpu"
    assert trained.history[0]["rows_per_second"] > 0
    assert trained.history[0]["metrics"]["valid/loss"] == trained.metric_values["valid/loss"][0]
    assert {"step", "total", "loss", "rows_per_second"} <= set(told[-1])
    assert model.predict(digits[0][0]) in range(10)


def test_the_same_seed_gives_the_same_weights():
    """Another one gives others; and the caller's random states are what they were."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    expected = (torch.rand(()).item(), np.random.random(), random.random())  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    state = torch.get_rng_state()
    one, same, other = (weights.content_hash(train(linear(), trainer(seed=seed), line()).state) for seed in (3, 3, 4))
    assert one == same != other
    torch.set_rng_state(state)  # `linear` seeds it
    assert (torch.rand(()).item(), np.random.random(), random.random()) == expected  # noqa: NPY002


def test_it_learns():
    """Towards the line that the rows lie on."""
    model = linear()
    train(model, trainer(max_iterations=400, optimizer_kwargs={"lr": 0.05}), line(), line())
    assert model.predict(0.5).item() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("listen", "best"), [(None, 6), ("v/acc", 6), ("v/rmse", 9), ("valid/loss", 10), ("train/loss", 10)]
)
def test_the_best_weights_are_chosen_by_what_the_trainer_listens_to(listen, best):
    """By default by the validation's first metric; upwards, or downwards where the name is an error's."""
    model = linear()
    values = iter([(0.1, 4.0), (0.9, 3.0), (0.9, 1.0), (0.2, 2.0)])
    states = []

    def evaluate():
        acc, rmse = next(values)
        states.append(weights.content_hash(model.state()))
        return {"v/acc": acc, "v/rmse": rmse}

    trained = train(model, trainer(listen=listen, optimizer_kwargs={"lr": 0.05}), line(), line(), evaluate=evaluate)
    assert trained.best_step == best
    assert trained.step == 10
    assert weights.content_hash(trained.state) == states[trained.metric_steps.index(best)]
    assert weights.content_hash(model.state()) == states[trained.metric_steps.index(best)]


def test_the_direction_of_a_metric_may_be_told():
    """By the caller, or by the model's own validation."""
    values = [1.0, 3.0, 2.0, 0.5]
    for greater, best in ((True, 6), (False, 10)):
        given = iter(values)
        trained = train(
            linear(),
            trainer(),
            line(),
            evaluate=lambda given=given: {"v/acc": next(given)},
            greater_is_better=lambda name, greater=greater: greater,
        )
        assert trained.best_step == best


def test_without_anything_to_choose_by_the_last_weights_are_taken():
    """Nothing is kept apart, nothing validated: only the training loss is traced."""
    trained = train(linear(), trainer(), line())
    assert list(trained.metric_values) == ["train/loss"]
    assert trained.best_step == trained.step == 10


def test_it_stops_when_nothing_improves():
    """After as many validations in a row as the trainer allows; the best weights are those from before."""
    values = iter([0.5, 0.6, 0.6, 0.4, 0.7, 0.8])
    trained = train(
        linear(),
        trainer(max_iterations=1000, no_improve_then_stop=2),
        line(),
        evaluate=lambda: {"v/acc": next(values)},
    )
    assert (trained.step, trained.best_step) == (12, 6)
    assert trained.metric_values["v/acc"] == [0.5, 0.6, 0.6, 0.4]


def test_listening_to_what_nobody_measures_is_an_error():
    """It says what there is."""
    with pytest.raises(TrainingError, match=r"listen: there is no 'v/ac'; there is v/acc, train/loss"):
        train(linear(), trainer(listen="v/ac"), line(), evaluate=lambda: {"v/acc": 1.0})


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    """Before it gets into the weights."""
    model = linear()
    rows = ListExamples([(0.1, 0.2)] * 30 + [(0.1, float("nan"))] + [(0.1, 0.2)] * 9)
    with pytest.raises(TrainingError, match="step 4: the loss is nan"):
        train(model, trainer(loader_kwargs={"batch_size": 8, "shuffle": False}), rows)
    assert all(torch.isfinite(tensor).all() for tensor in model.state().values())
    with pytest.raises(TrainingError, match=r"step \d+: the loss is (inf|nan)"):
        train(
            linear(),
            trainer(optimizer_cls="SGD", optimizer_kwargs={"lr": 1e30}, max_iterations=100),
            line(),
        )


def test_weights_that_the_last_step_broke_are_refused():
    """No loss was computed with them."""
    broken = trainer(max_iterations=1, optimizer_cls="SGD", optimizer_kwargs={"lr": float("inf")})
    with pytest.raises(TrainingError, match=r"after step 1: weight '\w+' is no longer finite"):
        train(linear(), broken, line())


def test_a_metric_that_is_infinite_stops_the_run():
    """What was chosen by it would be nothing."""
    with pytest.raises(TrainingError, match="step 3: v/acc is inf"):
        train(linear(), trainer(), line(), evaluate=lambda: {"v/acc": float("inf")})


@pytest.mark.parametrize(
    ("values", "best", "stops"),
    [
        (["nan", 0.5, "nan", 0.4], 6, None),
        ([0.5, "nan", 0.6, "nan"], 9, None),
        (["nan"] * 4, 12, None),  # the last weights, as without a metric
        ([0.5, "nan", "nan", 0.9], 3, 9),  # no new best value twice in a row
    ],
)
def test_a_metric_without_a_value_is_never_the_best(values, best, stops):
    """NaN is no value: the weights of the best real one are kept."""
    measured = iter(map(float, values))
    chosen = trainer(max_iterations=12, validation_interval=3, no_improve_then_stop=2 if stops else None)
    result = train(linear(), chosen, line(), evaluate=lambda: {"v/acc": next(measured)})
    assert (result.best_step, result.step) == (best, stops or 12)
    assert [math.isnan(value) for value in result.metric_values["v/acc"]] == [
        value == "nan" for value in values[: len(result.metric_steps)]
    ]


def test_without_rows_there_is_nothing_to_learn():
    """Nor where all of them would be dropped."""
    with pytest.raises(TrainingError, match=r"no batch to learn from: 0 rows, batch_size 8.*select"):
        train(linear(), trainer(), ListExamples([]))
    with pytest.raises(TrainingError, match=r"5 rows, batch_size 8.*drop_last"):
        train(linear(), trainer(loader_kwargs={"batch_size": 8, "drop_last": True}), line(5))
    with pytest.raises(TrainingError, match="no rows to validate the loss on"):
        train(linear(), trainer(), line(), ListExamples([]))


def test_fewer_rows_than_a_batch_are_one_batch():
    """The last batch of an epoch may be smaller as well."""
    sizes = []

    def objective(output, target):
        sizes.append(len(target))
        return squared(output, target)

    train(linear(), trainer(objective=objective), line(5))
    assert sizes == [5] * 10
    sizes.clear()
    train(linear(), trainer(objective=objective), line(19))
    assert sizes == [8, 8, 3, 8, 8, 3, 8, 8, 3, 8]


def test_a_rest_of_one_row_is_passed_over_where_batch_statistics_are_learned():
    """Torch refuses to normalize a single row; with nothing else to learn from it says so."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    model = TorchModel("line", net, preprocess=lambda x: torch.tensor([x]), **CPU)
    sizes = []

    def objective(output, target):
        sizes.append(len(target))
        return squared(output, target)

    trained = train(model, trainer(objective=objective), line(17))
    assert trained.step == 10
    assert sizes == [8] * 10
    with pytest.raises(
        TrainingError, match=r"step 1: the model raised ValueError: Expected more than 1 value per channel.*1 rows"
    ):
        train(model, trainer(), line(1))


class Several(torch.nn.Module):
    """A module of two arguments."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, a, b):
        assert a.dtype == b.dtype == torch.float32
        return self.weight[0] * a + self.weight[1] * b

    def twice(self, a, b):
        return {"y": 2 * self.forward(a, b)}


@pytest.mark.parametrize(
    "transform",
    [
        None,
        lambda a, b, y: ((a, b), y),
        lambda a, b, y: ({"b": b, "a": a}, y),
        lambda a, b, y: [(a, b), torch.tensor(y)],
    ],
)
def test_a_batch_may_be_a_tuple_or_a_dict(transform):
    """They are the module's arguments, as in a prediction."""
    rows = ListExamples([(torch.tensor(i / 10), torch.tensor(1.0), 3.0 * i / 10 + 1.0) for i in range(20)])
    model = TorchModel("m", Several(), **CPU)
    options = {"objective": mse_loss, "transform": transform, "key": ["a", "b", "y"]}
    train(model, trainer(**options, max_iterations=300, optimizer_kwargs={"lr": 0.1}), rows)
    assert model.object.weight.tolist() == pytest.approx([3.0, 1.0], abs=0.1)


def test_a_key_with_names_and_the_models_own_method():
    """The key's names are the arguments' names; what `forward_method` returns goes to the objective."""
    model = TorchModel("m", Several(), forward_method="twice", **CPU)
    rows = ListExamples([(torch.tensor(1.0), torch.tensor(0.0), 1.0)] * 4)

    def objective(output, target):
        return mse_loss(output["y"], target)

    key = {"left": "b", "right": "a", "target": "y"}
    train(model, trainer(objective=objective, key=key, max_iterations=200, optimizer_kwargs={"lr": 0.05}), rows)
    assert model.object.weight.tolist() == pytest.approx([0.0, 0.5], abs=0.05)


@pytest.mark.parametrize(
    ("target", "dtype", "shape"),
    [
        (1, torch.int64, (4,)),
        (True, torch.bool, (4,)),
        (1.5, torch.float32, (4,)),
        (np.float64(1.5), torch.float32, (4,)),
        (np.ones(3), torch.float32, (4, 3)),
        ([1.0, 2.0], torch.float32, (4, 2)),
        ([1, 2], torch.int64, (4, 2)),
        (torch.ones(2, dtype=torch.float64), torch.float64, (4, 2)),
    ],
)
def test_targets_become_the_tensors_that_losses_want(target, dtype, shape):
    """Whole numbers int64, floats float32; a tensor stays what it is."""
    seen = []

    def objective(output, target):
        seen.append((target.dtype, tuple(target.shape)))
        return output.mean()

    train(linear(), trainer(objective=objective, max_iterations=1), ListExamples([(0.5, target)] * 4))
    assert seen == [(dtype, shape)]


def test_targets_in_a_tuple_or_a_dict():
    """Each of its parts by the same rule."""
    seen = []

    def objective(output, target):
        seen.append(target)
        return output.mean()

    for target in ((1, 2.5), {"a": 1, "b": 2.5}):
        train(linear(), trainer(objective=objective, max_iterations=1), ListExamples([(0.5, target)] * 2))
    (ints, floats), named = seen
    assert (ints.dtype, floats.dtype, named["a"].dtype, named["b"].dtype) == (
        torch.int64,
        torch.float32,
        torch.int64,
        torch.float32,
    )


@pytest.mark.parametrize("target", ["cat", None])
def test_targets_that_no_loss_takes_are_refused(target):
    """The message says what to do."""
    with pytest.raises(TrainingError, match=r"the targets failed on the batch of rows .*give the trainer a transform"):
        train(linear(), trainer(), ListExamples([(0.5, target)] * 4))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_transform_that_fails_names_the_row(num_workers):
    """Its place and the original error, in this process and in a worker's."""

    def transform(x, y):
        if y == 2 * 7 / 40 + 1:
            raise ValueError("no such picture")
        return torch.tensor([x]), y

    options = {"transform": transform, "loader_kwargs": {"batch_size": 8, "num_workers": num_workers}}
    with pytest.raises(TrainingError, match=r"^transform failed on row 7: ValueError: no such picture$"):
        train(linear(), trainer(**options), line())


def test_what_a_transform_or_collate_fn_must_return():
    """A pair; and rows of unequal shape are no batch."""
    with pytest.raises(TrainingError, match=r"transform: expected it to return \(input, target\), got float for row"):
        train(linear(), trainer(transform=lambda x, y: x), line())
    with pytest.raises(TrainingError, match=r"transform: .*got 3 values"):
        train(linear(), trainer(transform=lambda x, y: (x, y, y)), line())
    with pytest.raises(TrainingError, match=r"collate_fn: expected it to return \(input, target\), got Tensor"):
        train(linear(), trainer(loader_kwargs={"collate_fn": lambda pairs: torch.zeros(2)}), line())
    with pytest.raises(TrainingError, match=r"the inputs failed on the batch of rows .*unequal kind"):
        train(linear(), trainer(transform=lambda x, y: (torch.zeros(1 + int(x * 40) % 2), y)), line())
    with pytest.raises(TrainingError, match="preprocess failed on row"):
        train(linear(preprocess=lambda x: 1 / 0), trainer(), line())


def test_a_batched_preprocess_is_used_where_there_is_no_transform():
    """With what a transform for each row would give."""
    sizes = []

    def together(xs):
        sizes.append(len(xs))
        return torch.tensor(xs).unsqueeze(1)

    one = train(linear(preprocess_batch=together), trainer(), line())
    assert sizes == [8] * 10
    assert weights.content_hash(one.state) == weights.content_hash(train(linear(), trainer(), line()).state)

    def fails(xs):
        raise ValueError("none of these")

    with pytest.raises(
        TrainingError, match=r"preprocess_batch failed on the batch of rows .*ValueError: none of these"
    ):
        train(linear(preprocess_batch=fails), trainer(), line())


def test_a_collate_fn_puts_the_pairs_together():
    """It gets what the transform returns of each row."""

    def together(pairs):
        return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])

    given = {"batch_size": 8, "collate_fn": together}
    one = train(linear(), trainer(loader_kwargs=given), line())
    assert weights.content_hash(one.state) == weights.content_hash(train(linear(), trainer(), line()).state)


def test_what_the_objective_must_return():
    """One number that depends on the weights; what it raises is told with the step."""
    with pytest.raises(TrainingError, match=r"step 1: the objective returned a tensor of shape \(8,\)"):
        train(linear(), trainer(objective=lambda output, target: output.squeeze(1) - target), line())
    with pytest.raises(TrainingError, match="step 1: the objective returned float"):
        train(linear(), trainer(objective=lambda output, target: 1.0), line())
    with pytest.raises(TrainingError, match="step 1: the loss does not depend on any weight"):
        train(linear(), trainer(objective=lambda output, target: target.sum()), line())

    def odd(output, target):
        raise ValueError("odd")

    with pytest.raises(TrainingError, match=r"step 1: the objective raised ValueError: odd \(batch 0, 8 rows, on"):
        train(linear(), trainer(objective=odd), line())


def test_an_objective_may_be_a_class_or_an_object():
    """A class is built without arguments."""
    rows = ListExamples([(0.5, [1.0])] * 4)
    one = train(linear(), trainer(objective=torch.nn.MSELoss), rows)
    assert weights.content_hash(one.state) == weights.content_hash(
        train(linear(), trainer(objective=torch.nn.MSELoss()), rows).state
    )


def test_optimizers():
    """A class, a name, or a function; what cannot be one is refused."""
    hashes = {
        weights.content_hash(train(linear(), trainer(optimizer_cls=given, optimizer_kwargs={"lr": 0.1}), line()).state)
        for given in ("SGD", torch.optim.SGD, lambda parameters, lr: torch.optim.SGD(parameters, lr=lr))
    }
    assert len(hashes) == 1
    with pytest.raises(DeclarationError, match="optimizer_kwargs: Adam takes no 'speed'"):
        train(linear(), trainer(optimizer_kwargs={"speed": 1}), line())
    with pytest.raises(TrainingError, match="expected it to make an optimizer of torch, got int"):
        train(linear(), trainer(optimizer_cls=lambda parameters: 1), line())
    frozen = linear()
    frozen.object.requires_grad_(requires_grad=False)
    with pytest.raises(TrainingError, match="no weights to train"):
        train(frozen, trainer(), line())


def test_frozen_weights_stay_and_tied_ones_stay_tied():
    """Only what requires a gradient learns."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net[2].weight = net[0].weight
    net[1].requires_grad_(requires_grad=False)
    model = TorchModel("tied", net, preprocess=lambda x: torch.tensor([x, 1.0]), **CPU)
    before = model.state()
    trained = train(
        model, trainer(objective=lambda output, target: (output.sum(1) - target).pow(2).mean()), line(), line()
    )
    assert torch.equal(trained.state["1.weight"], before["1.weight"])
    assert not torch.equal(trained.state["0.weight"], before["0.weight"])
    assert trained.state["0.weight"] is trained.state["2.weight"]
    assert net[0].weight is net[2].weight


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_model_learns_in_float32(dtype):
    """Steps that are smaller than half precision can tell still add up; the result is what the model is declared to
    hold.
    """
    model = linear(dtype=dtype)
    seen = set()

    def objective(output, target):
        seen.add(output.dtype)
        return squared(output, target)

    def evaluate():
        seen.add(model.object.weight.dtype)
        return {"v/error": abs(model.predict(0.5).item() - 2.0)}

    options = {"max_iterations": 400, "optimizer_kwargs": {"lr": 0.05}, "validation_interval": 50}
    trained = train(model, trainer(objective=objective, **options), line(), evaluate=evaluate)
    assert seen == {torch.float32}
    assert trained.state["weight"].dtype == model.object.weight.dtype == getattr(torch, dtype)
    assert model.predict(0.5).dtype == torch.float32
    assert model.predict(0.5).item() == pytest.approx(2.0, abs=0.05)


def test_a_double_precision_model_learns_in_it():
    """Its inputs and targets are turned into it."""
    model = linear(dtype="float64")
    trained = train(model, trainer(), line(), line())
    assert trained.state["weight"].dtype == torch.float64


class Remembering(torch.nn.Module):
    """A module that keeps a table of the longest batch so far, as positional encodings do, and counts its modes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.table = torch.empty(0)
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        if len(x) > len(self.table):
            self.table = torch.ones(len(x))
        return x * self.weight * self.table[: len(x), None]


def test_predictions_during_a_training_do_not_disturb_it():
    """They are made in evaluation mode, the steps in training mode; what the module keeps of them can still take part
    in a gradient.
    """
    model = TorchModel("m", Remembering(), preprocess=lambda x: torch.tensor([x]), **CPU)

    def evaluate():
        model.predict_batches([0.5] * 20)
        return {"v/acc": 1.0}

    train(model, trainer(), line(), evaluate=evaluate)
    first = [False, False]  # the first prediction tries another batch size too
    assert model.object.modes == [True] * 3 + first + [True] * 3 + [False] + [True] * 3 + [False, True, False]
    with torch.inference_mode():  # whoever calls
        train(model, trainer(), line())


def test_a_model_that_has_predicted_can_be_trained():
    """The other way round, too."""
    model = linear()
    model.predict(0.5)
    train(model, trainer(), line())
    assert not model.predict(0.5).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": 3}, "objective: expected a callable, got 3"),
        ({"select": {"_fold": "train"}}, r"select: expected a query"),
        ({"key": 3}, r"key: it must be a list of fields.*got 3"),
        ({"key": ["img", "img", "y"]}, r"key: a field occurs twice"),
        ({"transform": 1}, "transform: expected a callable"),
        ({"loader_kwargs": [1]}, "loader_kwargs: expected keyword arguments"),
        (
            {"loader_kwargs": {"batch_size": 0}},
            "loader_kwargs: batch_size: expected a whole number of at least 1, got 0",
        ),
        ({"loader_kwargs": {"batch_size": None}}, "loader_kwargs: batch_size"),
        ({"loader_kwargs": {"batchsize": 3}}, "loader_kwargs: 'batchsize' is no argument of"),
        ({"loader_kwargs": {"sampler": []}}, "loader_kwargs: sampler: the trainer sets the order"),
        ({"loader_kwargs": {"batch_sampler": []}}, "loader_kwargs: batch_sampler: the trainer sets the order"),
        ({"loader_kwargs": {"shuffle": "yes"}}, "loader_kwargs: shuffle: expected True or False"),
        ({"loader_kwargs": {"multiprocessing_context": "spawn"}}, "multiprocessing_context: workers are forked"),
        ({"loader_kwargs": {"prefetch_factor": 2}}, "loader_kwargs: prefetch_factor"),
        ({"loader_kwargs": {"collate_fn": 1}}, "loader_kwargs: collate_fn: expected a callable"),
        ({"optimizer_cls": "Adamm"}, "optimizer_cls: expected an optimizer's class, or its name"),
        ({"optimizer_cls": "lr_scheduler"}, "optimizer_cls"),
        ({"optimizer_cls": 3}, "optimizer_cls"),
        ({"optimizer_cls": torch.optim.LBFGS}, r"optimizer_cls: LBFGS evaluates the loss several times"),
        ({"optimizer_kwargs": 3}, "optimizer_kwargs: expected keyword arguments"),
        ({"max_iterations": 0}, "max_iterations: it must be a whole number of steps, at least 1.*got 0"),
        ({"max_iterations": True}, "max_iterations"),
        ({"max_epochs": 0}, "max_epochs: it must be a whole number of passes over all rows, at least 1.*got 0"),
        ({"validation_interval": 1.5}, "validation_interval: .*got 1.5"),
        ({"no_improve_then_stop": 0}, "no_improve_then_stop: it must be .*got 0"),
        ({"listen": ""}, "listen: it must be .*dataset/metric"),
        ({"gradient_clip": 0}, "gradient_clip: it must be a number above 0.*got 0"),
        ({"accumulate": 0}, "accumulate: it must be a whole number of batches, at least 1.*got 0"),
        ({"seed": -1}, "seed: it must be a whole number from 0"),
        ({"folds": 1.5}, "folds: it must be .*a fraction"),
        ({"folds": "valid"}, "folds"),
        ({"promote": "maybe"}, "promote: it must be .*'maybe'"),
        ({"promote_metric": 3}, "promote_metric"),
        ({"promote_margin": -1}, "promote_margin: it must be a number, at least 0"),
        ({"keep": 0}, "keep"),
        ({"when": "hourly"}, "when: it must be a list"),
        ({"when": ["hourly"]}, "when.0: it must be"),
        ({"when": [{"cron": "0 25 * * *"}]}, "when.0.cron: `25` is no hour"),
        ({"when": [{"cron": "0 3 * * *", "timezone": "Mars"}]}, "'Mars' is no time zone"),
        ({"time_limit": 0}, "time_limit: it must be a duration above 0"),
        ({"retries": -1}, "retries"),
        ({"threads": 0}, "threads"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(options, message):
    """The error names the trainer and the argument."""
    with pytest.raises(DeclarationError, match=r"trainer 'line': .*" + message):
        trainer(**options)


def test_a_trainers_name_is_checked():
    """As every component's."""
    with pytest.raises(DeclarationError, match="trainer 'my trainer'"):
        TorchTrainer("my trainer", squared)


def test_the_norm_of_the_gradients_is_limited():
    """With a learning rate of 1 a step moves the weights by the gradients: no further than the limit."""

    def moved(**options):
        model = linear()
        before = model.state()
        plain = {"optimizer_cls": "SGD", "optimizer_kwargs": {"lr": 1.0}, "max_iterations": 1}
        after = train(model, trainer(**plain, **options), line()).state
        return torch.cat([(after[name] - before[name]).flatten() for name in before]).norm().item()

    assert moved() > 1
    assert moved(gradient_clip=0.25) == pytest.approx(0.25, rel=1e-3)
    assert moved(gradient_clip=1e6) == moved()


def test_several_small_batches_move_the_weights_as_a_large_one():
    """Eight rows in each step, at once or in two or four batches; ten steps either way."""

    def learned(size, **options):
        plain = {"optimizer_cls": "SGD", "optimizer_kwargs": {"lr": 0.5}, "gradient_clip": 0.5}
        result = train(linear(), trainer(loader_kwargs={"batch_size": size}, **plain, **options), line())
        assert result.step == 10
        return torch.cat([result.state[name].flatten() for name in result.state]), result.metric_values["train/loss"]

    weights_of_one, losses = learned(8)
    for size, n in ((4, 2), (2, 4)):
        found, found_losses = learned(size, accumulate=n)
        assert torch.allclose(found, weights_of_one, rtol=1e-5)
        assert found_losses == pytest.approx(losses, rel=1e-5)
    assert not torch.allclose(learned(4)[0], weights_of_one, rtol=1e-3)


@pytest.mark.parametrize(
    ("n", "options", "steps", "times"),
    [
        (40, {}, 10, {2}),
        (39, {}, 10, {2}),
        (39, {"loader_kwargs": {"batch_size": 8, "drop_last": True}}, 8, {0, 1, 2}),
        (40, {"accumulate": 5}, 2, {2}),
        (40, {"accumulate": 4}, 3, {2, 3}),  # the last step begins a third pass
        (41, {"net": torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1))}, 10, {1, 2}),
    ],
)
def test_epochs_are_passes_over_all_rows(n, options, steps, times):
    """Each row is learned from as often; `max_iterations` does not count then, and the last step is validated."""
    net, seen = options.get("net", torch.nn.Linear(1, 1)), []
    arguments = {name: value for name, value in options.items() if name != "net"}

    def objective(output, target):
        seen.extend(target.tolist())
        return squared(output, target)

    model = TorchModel("line", net, preprocess=lambda x: torch.tensor([x]), **CPU)
    told = []
    result = train(model, trainer(objective=objective, max_epochs=2, **arguments), line(n), report=told.append)
    assert (result.step, result.metric_steps[-1], told[-1]["total"]) == (steps, steps, steps)
    assert {seen.count(target) for target in torch.tensor([y for _, y in line(n).fetch(range(n))]).tolist()} <= times


def test_gradients_that_are_not_finite_end_the_training_if_they_are_limited():
    """The root of nothing has a finite value and no finite slope: the weights stay as they were."""
    model = linear()
    before = weights.content_hash(model.state())
    with pytest.raises(TrainingError, match="step 1: the norm of the gradients is nan"):
        train(model, trainer(objective=lambda y, _: (y * 0).sqrt().sum(), gradient_clip=1.0), line())
    assert weights.content_hash(model.state()) == before


def test_a_trainer_like_another():
    """With changes, and without its traces."""
    one = trainer(seed=7, key=["x", "y"])
    one.metric_steps.append(3)
    other = one.replaced(max_iterations=5)
    assert (other.seed, other.max_iterations, other.key, other.metric_steps) == (7, 5, one.key, [])
    with pytest.raises(DeclarationError, match="there is no argument 'iterations'"):
        one.replaced(iterations=5)


def test_a_stop_is_obeyed_before_the_next_step():
    """Also in the midst of a validation."""
    reasons = iter([None, None, "the daemon is being stopped"])
    told = []
    with pytest.raises(Stopped, match="the daemon is being stopped"):
        train(linear(), trainer(), line(), report=told.append, stopped=lambda: next(reasons))
    assert told[-1]["step"] <= 2
    asked = []

    def stopped():
        asked.append(1)
        return "enough" if len(asked) > 5 else None

    with pytest.raises(Stopped, match="enough"):
        train(linear(), trainer(max_iterations=3), line(), line(1000), stopped=stopped)
    assert len(asked) == 6


def test_metrics_know_their_direction_by_the_models_validation():
    """A name that sounds of an accuracy may be declared otherwise."""

    class Validation:
        names = ("v/acc",)

        def metric(self, name):
            return Metric("acc", lambda x, y: 0.0, greater_is_better=False)

    model = linear()
    model.validation = Validation()
    values = iter([1.0, 3.0, 2.0, 0.5])
    assert train(model, trainer(), line(), evaluate=lambda: {"v/acc": next(values)}).best_step == 10


def test_the_loss_on_rows_apart_is_what_the_training_measured():
    """Also where they are fewer than a batch and the training drops what is no whole one."""
    model = linear()
    declared = trainer(loader_kwargs={"batch_size": 8, "drop_last": True})
    trained = train(model, declared, line(), line(5))
    model.load_state(trained.state)
    assert valid_loss(model, declared, line(5)) == min(trained.metric_values["valid/loss"])


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_memory_that_runs_out_is_no_error_of_the_declaration(error):
    """Another attempt may end otherwise, so it passes as it is, from wherever it comes."""

    def greedy(*_: object) -> None:
        raise error("no memory")

    for options in ({"objective": greedy}, {"transform": greedy}):
        with pytest.raises(error, match="no memory"):
            train(linear(), trainer(**options), line())


def test_an_error_says_whose_code_it_was_on_what_and_names_the_row():
    """A row by the name that its examples give it."""

    class Named(ListExamples):
        def name(self, place):
            return f"id{place}"

    def fussy(x, y):
        raise ValueError("I do not like it")

    rows = Named([(0.5, 1.0)])
    with pytest.raises(TrainingError, match=r"transform failed on row id0: ValueError: I do not like it"):
        train(linear(), trainer(transform=fussy), rows)
    with pytest.raises(TrainingError, match=r"step 1: the model raised RuntimeError: .*on tensor 1x2 float32"):
        train(linear(preprocess=lambda x: torch.tensor([x, x])), trainer(), rows)
    with pytest.raises(
        TrainingError, match=r"step 1: the objective raised .*on \(tensor 1x1 float32, tensor 1 float32\)"
    ):
        train(linear(), trainer(objective=fussy), rows)
