"""A validation: metrics of a model on datasets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from components.dataset import Dataset
from components.declarations import ValidationArguments, When, made
from components.errors import DeclarationError, MetricError, Stopped
from components.examples import Examples, paired
from components.key import Arguments, Key, KeySpec
from components.metric import Metric
from components.model import Model
from components.names import check_identifier

FIRST, GROWTH, BATCH = 4, 4, 256
"""The number of rows that are read and predicted at once: at first, by what it grows, and at most."""
QUICK_SECONDS = 2.0
"""A batch that takes longer does not grow, because `stopped` is asked between two: a model may take seconds a row."""


class Validation:
    """Computes each of `metrics` on each of `datasets`; the name of a value is "dataset/metric".

    key: the fields of a row: all but the last are the model's arguments, the last is the target.
    model: the name of the model; not needed if the validation is attached to one (`model.validation = ...`).
    when: triggers, such as {"every": 600}, {"cron": "0 3 * * *", "timezone": "UTC"}, {"rows": 1000}.

    Raises DeclarationError.
    """

    def __init__(
        self,
        identifier: str,
        key: KeySpec | Key,
        datasets: Sequence[Dataset],
        metrics: Sequence[Metric],
        model: str | None = None,
        when: Iterable[Mapping[str, Any] | When] = (),
    ) -> None:
        check_identifier(identifier, "validation")
        self.identifier = identifier
        fields = key.spec if isinstance(key, Key) else key
        given = made(ValidationArguments, f"validation {identifier!r}", {"key": fields, "when": when})
        self.key, self._inputs, self.when = given.parsed_key, given.inputs, given.when
        self.datasets: tuple[Dataset, ...] = _named(identifier, "datasets", Dataset, datasets)
        self.metrics: tuple[Metric, ...] = _named(identifier, "metrics", Metric, metrics)
        if model is not None:
            check_identifier(model, "model")
        self.model = model

    @property
    def names(self) -> list[str]:
        """The names of all values, in the order that `evaluate` returns them."""
        return [f"{dataset.identifier}/{metric.identifier}" for dataset in self.datasets for metric in self.metrics]

    def metric(self, name: str) -> Metric:
        """Return the metric of a value's name ("my-valid/acc"); raises DeclarationError if there is none."""
        for dataset in self.datasets:
            for metric in self.metrics:
                if name == f"{dataset.identifier}/{metric.identifier}":
                    return metric
        raise DeclarationError(f"validation {self.identifier!r} has no {name!r}; it has {', '.join(self.names)}")

    def check_directions(self) -> None:
        """Raise DeclarationError if it is unknown whether a greater value of a metric is better."""
        for metric in self.metrics:
            if metric.known_direction is None:
                raise DeclarationError(
                    f"validations.{self.identifier}.metrics.{metric.identifier}.greater_is_better: its name does not "
                    "say whether a greater value is better; give the metric greater_is_better=True or False"
                )

    def evaluate(
        self, model: Model, examples: Callable[[Dataset], Examples], *, stopped: Callable[[], str | None] | None = None
    ) -> dict[str, float]:
        """Predict all rows and return the values by name.

        examples: returns a dataset's rows, read with this validation's key.
        stopped: called before each batch; returns a reason to stop, or None.

        Raises MetricError if a dataset is empty or a metric cannot be computed, Stopped, and the model's exceptions.
        """
        values: dict[str, float] = {}
        for dataset in self.datasets:
            predictions, targets = self._predicted(model, dataset, examples(dataset), stopped)
            for metric in self.metrics:
                try:
                    value = metric(list(predictions), list(targets))
                except MetricError as error:
                    raise MetricError(
                        f"validation {self.identifier!r}, dataset {dataset.identifier!r}: {error}"
                    ) from error
                values[f"{dataset.identifier}/{metric.identifier}"] = value
        return values

    def _predicted(
        self, model: Model, dataset: Dataset, rows: Examples, stopped: Callable[[], str | None] | None
    ) -> tuple[list[Any], list[Any]]:
        predictions: list[Any] = []
        targets: list[Any] = []
        start, size = 0, FIRST
        while start < len(rows):
            if stopped is not None and (reason := stopped()) is not None:
                raise Stopped(reason)
            places = range(start, min(start + size, len(rows)))
            fetched = [paired(row) for row in rows.fetch(places) if row is not None]
            began = time.monotonic()
            predictions += model.predict_batches([self._arguments(row) for row in fetched], batch_size=size)
            targets += [row[-1] for row in fetched]
            start += size
            size = min(BATCH, size * GROWTH) if time.monotonic() - began < QUICK_SECONDS else size
        if not targets:
            raise MetricError(
                f"validation {self.identifier!r}: dataset {dataset.identifier!r} is empty: no row of table "
                f"{dataset.select.table!r} matches {dataset.select.where!r} and has {', '.join(self.key.fields)}"
            )
        return predictions, targets

    def _arguments(self, row: tuple[Any, ...]) -> Arguments:
        return self._inputs.arguments(row[:-1])

    def __repr__(self) -> str:
        return f"Validation({self.identifier!r})"


def _named(identifier: str, what: str, kind: type[Any], given: Sequence[Any]) -> tuple[Any, ...]:
    items = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if not items:
        raise DeclarationError(f"validation {identifier!r}: {what}: there is none; a validation needs at least one")
    for item in items:
        if not isinstance(item, kind):
            raise DeclarationError(
                f"validation {identifier!r}: {what}: expected a list of {kind.__name__}, got {type(item).__name__}"
            )
    names = [item.identifier for item in items]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DeclarationError(f"validation {identifier!r}: {what}: {twice!r} occurs twice; give each its own name")
    return items
