"""The trainer of a model that is trained by an own loop, or by the methods of its object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from components.argument_checks import Checks
from components.declarations import LoopArguments, documented, made
from components.errors import DeclarationError
from components.fitting import Fit
from components.key import Key, KeySpec
from components.names import check_identifier
from components.query import Query
from components.training_loop import TrainingLoop


@documented(LoopArguments)
class LoopTrainer:
    """The declaration of a training by a loop of one's own.

    loop: an instance of a subclass of `TrainingLoop`. By default `Fit()`: the object of an ObjectModel is trained by
        its own `fit` or `partial_fit`.
    select: the rows. key: their fields; the last is the target, the others are the model's input.
    transform: `transform(*values)` returns (input, target) for one row's values in the key's order. By default the
        model's own preprocess makes the input, and the target is unchanged.
    seed: of the rows' order and of all randomness.
    listen: the metric that selects the best weights; by default the first one of the validations.
    folds, promote, promote_metric, promote_margin, promote_fall, keep, when, time_limit, retries, threads: as for
        TorchTrainer.

    After a training, `metric_values`, `metric_steps` and `history` hold what was measured. Raises DeclarationError.
    """

    def __init__(
        self,
        identifier: str,
        loop: TrainingLoop | Any = None,
        select: Query | None = None,
        key: KeySpec | Key | None = None,
        transform: Callable[..., Any] | None = None,
        **arguments: Any,
    ) -> None:
        check_identifier(identifier, "trainer")
        check = Checks(identifier)
        if not isinstance(loop, TrainingLoop | None):
            got = loop.__name__ if isinstance(loop, type) else type(loop).__name__
            raise DeclarationError(
                f"trainer {identifier!r}: loop: expected an instance of a subclass of TrainingLoop, got {got}"
            )
        self.identifier = identifier
        self.loop = loop or Fit()
        self.select = check.query(select)
        self.key = check.key(key)
        self.transform = None if transform is None else check.callable("transform", transform)
        own = ("loop", "select", "key", "transform")
        self.arguments = made(LoopArguments, f"trainer {identifier!r}", arguments, also=own)
        self.metric_values: dict[str, list[float]] = {}
        self.metric_steps: list[int] = []
        self.history: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        """Return one of the plain arguments."""
        if name in LoopArguments.model_fields:
            return getattr(self.arguments, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identifier!r})"
