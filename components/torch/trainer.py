"""The trainer of a PyTorch model: a declaration of how it learns, and afterwards the traces of how it went.

`components.torch.loop` does the learning, by a job of the daemon or in process (`TorchModel.fit`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

from components.declarations import Keyed, TrainerArguments, documented, made
from components.errors import DeclarationError
from components.key import Key, KeySpec
from components.names import check_identifier
from components.query import Query
from components.torch.loader_options import LoaderOptions

__all__ = ["TorchTrainer"]


@documented(TrainerArguments)
class TorchTrainer:
    """How a model learns: from which rows, towards what, and for how long.

    objective: `objective(output, target)` returns the loss, one number; both are batches on the model's device. A
        class, such as `torch.nn.CrossEntropyLoss`, is built without arguments.
    select: the rows; key: their fields, all but the last the model's input, the last its target. `fit` needs neither.
    transform: `transform(*values)` makes of one row's values, in the key's order, the pair (input, target). By default
        the model's own preprocess makes the input and the target stays as it is. It may be random: it is seeded by
        (seed, batch).
    loader_kwargs: of `torch.utils.data.DataLoader`: batch_size (32 unless told), drop_last, shuffle (True unless told),
        num_workers, collate_fn (a list of (input, target) to a pair of batches), pin_memory, prefetch_factor, timeout,
        worker_init_fn.
    optimizer_cls: an optimizer's class, its name in torch.optim, or a function of the parameters; gets optimizer_kwargs
    too.
    max_iterations: steps, exactly that many unless it stops early.
    validation_interval: steps between two validations; there is one more after the last step.
    no_improve_then_stop: stop after that many validations in a row without a new best value of `listen`.
    listen: "dataset/metric", "valid/loss" or "train/loss": what the best weights are chosen by. By default the
        validation's first metric, else "valid/loss" where rows are kept apart; else the last weights are taken.
    gradient_clip: the largest norm of the gradients of a step, over all weights; longer ones are scaled down to it.
    seed: of the order of the rows, of the transform's and of the model's randomness.
    folds: "auto" (rows with `_fold` "train" train, "valid" validate, where the table has that field and `select` does
        not mention it), a fraction of the rows that is kept apart for "valid/loss", or None: all rows train.
    promote: when a trained version goes live: "always", "better" (by promote_metric, by more than promote_margin),
    "manual".
    keep: versions that are kept. when: triggers of a training, such as {"every": 3600}.
    time_limit: seconds, or None; retries: of a training that failed; threads: of torch, None for half of the cores.
    checkpoint_seconds: between two checkpoints; 0 for one after each step.

    After a training, `metric_values` holds for each name ("my-valid/acc", "valid/loss", "train/loss") a value for each
    of `metric_steps`, and `history` a record for each of them: step, loss, learning_rate, rows_per_second, device,
    metrics.

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
        self.optimizer_kwargs = check.mapping("optimizer_kwargs", optimizer_kwargs)
        self.arguments = made(TrainerArguments, f"trainer {identifier!r}", arguments)
        self.metric_values: dict[str, list[float]] = {}
        self.metric_steps: list[int] = []
        self.history: list[dict[str, Any]] = []
        self._given = {
            "identifier": identifier,
            "objective": objective,
            "select": select,
            "key": key,
            "transform": transform,
            "loader_kwargs": loader_kwargs,
            "optimizer_cls": optimizer_cls,
            "optimizer_kwargs": optimizer_kwargs,
            **arguments,
        }

    def __getattr__(self, name: str) -> Any:
        """Return one of the plain arguments."""
        if name in TrainerArguments.model_fields:
            return getattr(self.arguments, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def replaced(self, **changes: Any) -> Self:
        """A trainer like this one with some arguments changed, and no traces; raises DeclarationError."""
        return type(self)(**{**self._given, **changes})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identifier!r})"


class _Checks:
    """The checks of the arguments of one trainer; each returns the value, or raises DeclarationError with the
    argument's name.
    """

    def __init__(self, identifier: str) -> None:
        self.identifier = identifier

    def refuse(self, argument: str, why: str) -> DeclarationError:
        return DeclarationError(f"trainer {self.identifier!r}: {argument}: {why}")

    def callable(self, argument: str, value: Any) -> Callable[..., Any]:
        if not callable(value):
            raise self.refuse(argument, f"expected a callable, got {value!r}")
        found: Callable[..., Any] = value
        return found

    def query(self, select: Any) -> Query | None:
        if select is not None and not isinstance(select, Query):
            raise self.refuse("select", f"expected a query such as db['mnist'], got {select!r}")
        return select

    def key(self, key: Any) -> Key | None:
        if key is None or isinstance(key, Key):
            return key
        return made(Keyed, f"trainer {self.identifier!r}", {"key": key}).parsed_key

    def mapping(self, argument: str, value: Any) -> dict[str, Any]:
        if value is not None and not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
            raise self.refuse(argument, f"expected keyword arguments by name, got {value!r}")
        return dict(value or {})

    def loader(self, options: Mapping[str, Any]) -> LoaderOptions:
        try:
            return LoaderOptions.of(options)
        except DeclarationError as error:
            raise self.refuse("loader_kwargs", str(error)) from None

    def optimizer(self, value: Any) -> Callable[..., Any]:
        if value is None:
            return torch.optim.Adam
        found = getattr(torch.optim, value, None) if isinstance(value, str) else value
        if not callable(found) or (isinstance(value, str) and not issubclass(found, torch.optim.Optimizer)):
            raise self.refuse(
                "optimizer_cls", f"expected an optimizer's class, or its name in torch.optim ('AdamW'), got {value!r}"
            )
        step = inspect.signature(found.step).parameters.get("closure") if hasattr(found, "step") else None
        if step is not None and step.default is inspect.Parameter.empty:
            raise self.refuse(
                "optimizer_cls", f"{found.__name__} evaluates the loss several times in a step (closure); use another"
            )
        chosen: Callable[..., Any] = found
        return chosen
