"""The trainer of a PyTorch model: declares a training, and afterwards holds its history.

`components.torch.loop` runs the training, in a job of the daemon or in this process (`TorchModel.fit`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

from components.argument_checks import Checks
from components.declarations import TrainerArguments, documented, made
from components.errors import DeclarationError
from components.key import Key, KeySpec
from components.names import check_identifier, meant
from components.query import Query
from components.torch.loader_options import LoaderOptions


@documented(TrainerArguments)
class TorchTrainer:
    """The declaration of a training: its rows, its objective and its length.

    objective: `objective(output, target)` returns the loss, one number; both are batches on the model's device. A
        class, such as `torch.nn.CrossEntropyLoss`, is built without arguments.
    select: the rows. key: their fields; the last is the target, the others are the model's input. `fit` needs neither.
    transform: `transform(*values)` returns (input, target) for one row's values in the key's order. By default the
        model's own preprocess makes the input, and the target is unchanged. It may be random: the generators are seeded
        by (seed, batch).
    loader_kwargs: arguments of `torch.utils.data.DataLoader`: batch_size (default 32), drop_last, shuffle (default
        True), num_workers, collate_fn (takes a list of (input, target), returns a pair of batches), pin_memory,
        prefetch_factor, timeout, worker_init_fn.
    optimizer_cls: an optimizer's class, its name in torch.optim, or a function of the parameters. It is called with
        optimizer_kwargs too. A function whose first parameter is called `named_parameters` gets pairs of name and
        parameter.
    scheduler_cls: a learning-rate schedule's class, its name in torch.optim.lr_scheduler, or a function of the
        optimizer. It is called with scheduler_kwargs too, and moves on once a step.
    max_iterations: the number of steps, unless the training stops early.
    max_epochs: the number of passes over all rows, which decides in place of max_iterations.
    validation_interval: steps between two validations; the last step is always validated.
    no_improve_then_stop: stop after this many validations in a row without a new best value of `listen`.
    listen: the value that selects the best weights: "dataset/metric", "valid/loss" or "train/loss". The default is the
        validation's first metric; without one, "valid/loss" if rows are set apart; else the last weights are kept.
    gradient_clip: the largest norm of a step's gradients over all weights; greater ones are scaled down to it.
    ema: the part that a step keeps of the moving averages of the weights. The averages are what is measured, kept and
        served.
    skip_bad_rows: the share of the rows that may be passed over because their preprocess or transform raises; they are
        named in the log. With more of them, the training fails.
    freeze: patterns of names of parameters and buffers, such as ["backbone.*"]. Parameters that match are not trained,
        and a part of the module of which all match is in evaluation mode, so its batch statistics stay too.
    accumulate: the number of batches of a step, whose gradients are averaged.
    mixed_precision: "float16" or "bfloat16": steps compute in it where torch's autocast does. The weights stay float32.
    weighted_by: the field with a row's weight: how often it is drawn. balanced_by: the field whose values are classes,
        each of which is drawn equally often. Either way an epoch has as many draws as there are rows.
    seed: the seed of the rows' order and of all randomness in the transform and the model.
    folds: "auto", a fraction, or None. "auto": if the table has the field `_fold` and `select` does not use it, rows
        with "train" train and rows with "valid" validate. A fraction of the rows is set apart for "valid/loss". None:
        all rows train.
    promote: when a trained version goes live: "always", "better" (if promote_metric improves by more than
        promote_margin) or "manual". promote_fall: one that is worse by more on the rows that judged the last promotion
        waits for a person; "any" turns this off.
    keep: the number of versions to keep. when: triggers of a training, such as {"every": 3600}.
    time_limit: seconds, or None. retries: of a failed training. threads: of torch; None means half of the cores.
    checkpoint_seconds: seconds between two checkpoints; 0 saves one after each step.

    After a training, `metric_values` holds for each name ("my-valid/acc", "valid/loss", "train/loss") one value per
    step in `metric_steps`. `history` holds one record per step in `metric_steps`: step, loss, learning_rate,
    rows_per_second, device, metrics.

    Raises DeclarationError, which names the argument.
    """

    def __init__(
        self,
        identifier: str,
        objective: Callable[..., Any],
        select: Query | None = None,
        key: KeySpec | Key | None = None,
        transform: Callable[..., Any] | None = None,
        loader_kwargs: Mapping[str, Any] | None = None,
        optimizer_cls: Callable[..., Any] | str | None = torch.optim.Adam,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        scheduler_cls: Callable[..., Any] | str | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        check_identifier(identifier, "trainer")
        check = _Checks(identifier)
        self.identifier = identifier
        self.objective = check.callable("objective", objective)
        self.select = check.query(select)
        self.key = check.key(key)
        self.transform = None if transform is None else check.callable("transform", transform)
        self.loader_kwargs = check.mapping("loader_kwargs", loader_kwargs)
        self.loader = check.loader(self.loader_kwargs)
        self.optimizer_cls = check.optimizer(optimizer_cls)
        self.optimizer_kwargs = check.arguments("optimizer_kwargs", optimizer_kwargs, self.optimizer_cls)
        self.scheduler_cls = None if scheduler_cls is None else check.scheduler(scheduler_cls)
        self.scheduler_kwargs = check.arguments("scheduler_kwargs", scheduler_kwargs, self.scheduler_cls)
        if self.scheduler_kwargs and self.scheduler_cls is None:
            raise check.refuse("scheduler_kwargs", "there is no scheduler_cls that they are for")
        own = [name for name in inspect.signature(type(self)).parameters if name not in TrainerArguments.model_fields]
        self.arguments = made(TrainerArguments, f"trainer {identifier!r}", arguments, also=own)
        if self.arguments.drawn_by is not None and not self.loader.shuffle:
            way = "weighted_by" if self.arguments.weighted_by else "balanced_by"
            raise check.refuse(way, "rows are drawn at random, so shuffle cannot be False")
        self.of_fit = False
        """Whether a model's `fit` has made it from its options."""
        self.metric_values: dict[str, list[float]] = {}
        self.metric_steps: list[int] = []
        self.history: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        """Return one of the plain arguments."""
        if name in TrainerArguments.model_fields:
            return getattr(self.arguments, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def replaced(self, **changes: Any) -> Self:
        """Return a copy of this trainer with some arguments changed and no history; raises DeclarationError."""
        given = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return type(self)(**{**given, **changes})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identifier!r})"


class _Checks(Checks):
    """Checks of what torch's trainer has alone."""

    def arguments(self, argument: str, value: Any, function: Callable[..., Any] | None) -> dict[str, Any]:
        """Check keyword arguments by the signature of the function that takes them, as far as it has one."""
        given = self.mapping(argument, value)
        try:
            parameters = {} if function is None else dict(inspect.signature(function).parameters)
        except (TypeError, ValueError):  # of an extension
            return given
        if parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            for name in given:
                if name not in parameters:
                    made_by = getattr(function, "__name__", type(function).__name__)
                    raise self.refuse(argument, f"{made_by} takes no {name!r}{meant(name, parameters)}")
        return given

    def loader(self, options: Mapping[str, Any]) -> LoaderOptions:
        try:
            return LoaderOptions.of(options)
        except DeclarationError as error:
            raise self.refuse("loader_kwargs", str(error)) from None

    def optimizer(self, value: Any) -> Callable[..., Any]:
        if value is None:
            return torch.optim.Adam
        make = getattr(torch.optim, value, None) if isinstance(value, str) else value
        if not callable(make) or (isinstance(value, str) and not issubclass(make, torch.optim.Optimizer)):
            raise self.refuse(
                "optimizer_cls", f"expected an optimizer's class, or its name in torch.optim ('AdamW'), got {value!r}"
            )
        if asks_again(make):
            raise self.refuse(
                "optimizer_cls", f"{make.__name__} evaluates the loss several times in a step (closure); use another"
            )
        chosen: Callable[..., Any] = make
        return chosen

    def scheduler(self, value: Any) -> Callable[..., Any]:
        make = getattr(torch.optim.lr_scheduler, value, None) if isinstance(value, str) else value
        if not callable(make) or (isinstance(value, str) and not _is_schedule(make)):
            raise self.refuse(
                "scheduler_cls",
                "expected a schedule's class, or its name in torch.optim.lr_scheduler ('CosineAnnealingLR'), got "
                f"{value!r}",
            )
        if isinstance(make, type) and issubclass(make, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise self.refuse(
                "scheduler_cls", f"{make.__name__} follows a metric, but a schedule moves on once a step; use another"
            )
        chosen: Callable[..., Any] = make
        return chosen


def asks_again(optimizer: Any) -> bool:
    """Return whether an optimizer, or a class of them, calls for the loss anew within its step."""
    step = inspect.signature(optimizer.step).parameters.get("closure") if hasattr(optimizer, "step") else None
    return step is not None and step.default is inspect.Parameter.empty


def _is_schedule(make: Any) -> bool:
    return isinstance(make, type) and issubclass(make, torch.optim.lr_scheduler.LRScheduler)
