"""The loop of objects that learn by methods of their own, such as the estimators of scikit-learn."""

from __future__ import annotations

import inspect
import random
from typing import Any

from components.errors import DeclarationError, TrainingError
from components.estimators import learns, stacked
from components.training_loop import Training, TrainingLoop, TrainingRows


class Fit(TrainingLoop):
    """Calls `fit` with all rows at once, or `partial_fit` with one batch after the other.

    method: "fit" or "partial_fit"; by default `fit`, if the object has it. epochs, batch_size: of `partial_fit`.
    arguments: passed on to the method.
    """

    def __init__(
        self,
        method: str | None = None,
        epochs: int = 1,
        batch_size: int = 1000,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        if method not in {None, "fit", "partial_fit"}:
            raise DeclarationError(f'method: expected "fit" or "partial_fit", got {method!r}')
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DeclarationError(f"{name}: expected a whole number of at least 1, got {value!r}")
        self.method = method
        self.epochs = epochs
        self.batch_size = batch_size
        self.arguments = dict(arguments or {})

    def refuse(self, learner: object) -> str | None:
        """Return why an object cannot be trained, in words; None if it can."""
        if not learns(learner):
            return f"{type(learner).__name__} has neither fit nor partial_fit; give the trainer a loop of your own"
        if self.method is not None and not callable(getattr(learner, self.method, None)):
            return f"{type(learner).__name__} has no {self.method}"
        return None

    def run(self, training: Training) -> None:
        """Train the object."""
        learner = training.module
        if problem := self.refuse(learner):
            raise TrainingError(problem)
        if self.method == "partial_fit" or not hasattr(learner, "fit"):
            self._in_batches(training, learner)
            return
        given, targets = _batch(training.rows, range(len(training.rows)))
        with training.busy():
            learner.fit(given, targets, **self.arguments)
        training.report(total=1)

    def _in_batches(self, training: Training, learner: Any) -> None:
        rows, more = training.rows, dict(self.arguments)
        takes = inspect.signature(learner.partial_fit).parameters
        if "classes" in takes and "classes" not in more:
            more["classes"] = _classes(rows, learner)
        done = training.restored or {"epoch": 0}
        size = self.batch_size
        total = self.epochs * -(-len(rows) // size)
        for epoch in range(done["epoch"], self.epochs):
            places = list(range(len(rows)))
            random.Random(f"{training.seed} {epoch}").shuffle(places)  # noqa: S311 - guards nothing
            for start in range(0, len(places), size):
                given, targets = _batch(rows, places[start : start + size])
                learner.partial_fit(given, targets, **more)
                training.report(total=total)
            training.measure()
            training.checkpoint({"epoch": epoch + 1})


def _batch(rows: TrainingRows, places: Any) -> tuple[Any, Any]:
    import numpy as np

    pairs = rows.__getitems__(places)
    if not pairs:
        raise TrainingError("there is nothing left to learn from: all rows were deleted, or lost a field of the key")
    targets = [target for _, target in pairs]
    return stacked([given for given, _ in pairs]), np.asarray(targets)


def _classes(rows: TrainingRows, learner: Any) -> Any:
    """Return all classes of the targets, as the first `partial_fit` of a classifier needs them."""
    import numpy as np

    classes = np.unique([target for _, target in rows])
    known = getattr(learner, "classes_", None)
    return known if known is not None and set(classes) <= set(known) else classes
