"""The trainer of a PyTorch model: a declaration of how it learns, and afterwards the traces of how it went.

`components.torch.loop` does the learning, by a job of the daemon or in process (`TorchModel.fit`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch

from components.errors import DeclarationError
from components.listener import Key, KeySpec
from components.names import check_identifier
from components.query import Query
from components.torch.loader_options import LoaderOptions
from components.when import triggers

__all__ = ["TorchTrainer"]

PROMOTE = ("better", "always", "manual")


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
        max_iterations: int = 1000,
        validation_interval: int = 100,
        no_improve_then_stop: int | None = None,
        listen: str | None = None,
        seed: int = 0,
        folds: str | float | None = "auto",
        promote: str = "always",
        promote_metric: str | None = None,
        promote_margin: float = 0.0,
        keep: int = 5,
        when: Iterable[Mapping[str, Any]] = (),
        time_limit: float | None = None,
        retries: int = 2,
        threads: int | None = None,
        checkpoint_seconds: float = 30.0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        check_identifier(identifier, "trainer")
        self._given = given
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
        self.max_iterations = check.whole("max_iterations", max_iterations)
        self.validation_interval = check.whole("validation_interval", validation_interval)
        self.no_improve_then_stop = check.whole("no_improve_then_stop", no_improve_then_stop, or_none=True)
        self.listen = check.name("listen", listen)
        self.seed = check.whole("seed", seed, least=0)
        self.folds = check.folds(folds)
        self.promote = check.one_of("promote", promote, PROMOTE)
        self.promote_metric = check.name("promote_metric", promote_metric)
        self.promote_margin = check.number("promote_margin", promote_margin)
        self.keep = check.whole("keep", keep)
        self.when = triggers(f"trainer {identifier!r}", when)
        self.time_limit = None if time_limit is None else check.number("time_limit", time_limit, above=True)
        self.retries = check.whole("retries", retries, least=0)
        self.threads = check.whole("threads", threads, or_none=True)
        self.checkpoint_seconds = check.number("checkpoint_seconds", checkpoint_seconds)
        self.metric_values: dict[str, list[float]] = {}
        self.metric_steps: list[int] = []
        self.history: list[dict[str, Any]] = []

    def replaced(self, **changes: Any) -> Self:
        """A trainer like this one with some arguments changed, and no traces; raises DeclarationError."""
        unknown = sorted(set(changes) - set(self._given))
        if unknown:
            raise DeclarationError(
                f"trainer {self.identifier!r}: it has no {unknown[0]!r}; it has {', '.join(self._given)}"
            )
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
        if key is None:
            return None
        try:
            parsed = key if isinstance(key, Key) else Key.parse(key)
        except DeclarationError as error:
            raise DeclarationError(f"trainer {self.identifier!r}: {error}") from None
        if len(parsed.fields) < 2:
            raise self.refuse(
                "key", f"expected the model's field and the target's, such as ['img', 'class'], got {parsed.spec!r}"
            )
        return parsed

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

    def whole(self, argument: str, value: Any, *, least: int = 1, or_none: bool = False) -> Any:
        if value is None and or_none:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            none = ", or None" if or_none else ""
            most = " and below 2**63" if isinstance(value, int) and value > 0 else ""
            raise self.refuse(argument, f"expected a whole number of at least {least}{most}{none}, got {value!r}")
        return value

    def number(self, argument: str, value: Any, *, above: bool = False) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (above and value == 0):
            raise self.refuse(argument, f"expected a number {'above' if above else 'of at least'} 0, got {value!r}")
        return float(value)

    def name(self, argument: str, value: Any) -> str | None:
        if value is not None and not (isinstance(value, str) and value):
            raise self.refuse(argument, f"expected the name of a metric, such as 'my-valid/acc', got {value!r}")
        return value

    def one_of(self, argument: str, value: Any, allowed: tuple[str, ...]) -> str:
        if value not in allowed:
            raise self.refuse(argument, f"expected {' or '.join(map(repr, allowed))}, got {value!r}")
        return str(value)

    def folds(self, value: Any) -> str | float | None:
        fraction = isinstance(value, float) and 0 < value < 1
        if value is not None and value != "auto" and not fraction:
            raise self.refuse("folds", f"expected 'auto', None, or a fraction between 0 and 1, got {value!r}")
        return value  # type: ignore[no-any-return]
