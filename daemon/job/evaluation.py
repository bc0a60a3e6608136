"""A model measured by its validations, always on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.builders import build_validation
from components.dataset import Dataset
from components.declarations import ValidationDeclaration
from components.examples import Examples
from components.model import Model
from components.validation import Validation
from daemon.job.context import Context
from daemon.store.registry.components import Catalog, Component
from daemon.store.rows import kept_rows
from daemon.store.rows.datasets import kept, pin_key
from daemon.store.rows.kept_rows import KeptExamples

Ids = Mapping[str, Sequence[Any]]
"""The `_id`s of each dataset, by "validation/dataset"."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's metrics, by "dataset/metric" over all validations, and by each validation."""

    metrics: Mapping[str, float]
    validations: Mapping[str, Mapping[str, float]]


class Evaluation:
    """The validations of `model`, and of other versions of it. `ids` are the rows; `keep` may cache rows for the next
    evaluation; `instead` are the rows of some datasets, by "validation/dataset", in place of those.
    """

    def __init__(
        self,
        context: Context,
        validations: Sequence[Component[ValidationDeclaration]],
        known: Catalog,
        ids: Ids,
        model: Model,
        keep: Callable[[Examples], Examples] = lambda rows: rows,
        instead: Mapping[str, Examples] = {},
    ) -> None:
        self._context = context
        self._declared = tuple(validations)
        self._rows: dict[str, Examples] = {}
        self._contents: dict[str, str] = {}
        self._names: dict[tuple[str, str], str] = {}
        self.greater: dict[str, bool] = {}
        for each in validations:
            validation = self._built(each, model)
            for name, dataset in each.declaration.datasets.items():
                place = f"{each.name}/{name}"
                self._rows[place] = (
                    instead.get(place)
                    or self._as_pinned(each, name, known, ids[place])
                    or keep(context.rows(dataset.table, each.declaration.key, ids[place], known))
                )
            for name in validation.names:
                whole = (
                    f"{each.name}/{name}" if name in self.greater else name
                )  # two validations may name a value alike
                self._names[each.name, name] = whole
                self.greater[whole] = validation.metric(name).greater_is_better

    def __bool__(self) -> bool:
        return bool(self._declared)

    @property
    def rows(self) -> int:
        """How many rows one evaluation predicts."""
        return sum(len(rows) for rows in self._rows.values())

    def __call__(self, model: Model) -> Measured:
        """Predicts all rows. Raises MetricError, Stopped, and whatever the model raises."""
        metrics: dict[str, float] = {}
        by_validation: dict[str, Mapping[str, float]] = {}
        for each in self._declared:
            validation = self._built(each, model)

            def rows(dataset: Dataset, name: str = validation.identifier) -> Examples:
                return self._rows[f"{name}/{dataset.identifier}"]

            found = validation.evaluate(model, rows, stopped=self._context.stopped)
            by_validation[validation.identifier] = found
            metrics |= {self._names[validation.identifier, name]: value for name, value in found.items()}
        return Measured(metrics, by_validation)

    def contents(self, validation: str) -> dict[str, str]:
        """The SHA-256 of the content of each pinned dataset of a validation that is kept."""
        of = f"{validation}/"
        return {place.removeprefix(of): sha for place, sha in self._contents.items() if place.startswith(of)}

    def _as_pinned(
        self, validation: Component[ValidationDeclaration], name: str, known: Catalog, ids: Sequence[Any]
    ) -> Examples | None:
        """The rows of a pinned dataset as they were; None if it is not pinned, or its contents are not kept."""
        context = self._context
        file = contents(context, validation, name, known, ids)
        rows = None if file is None else context.patience("rows", lambda: kept_rows.kept(context.database, file))
        if file is None or rows is None:
            return None
        self._contents[f"{validation.name}/{name}"] = file
        table, key = validation.declaration.datasets[name].table, validation.declaration.key
        return KeptExamples(table, context.fields(table, key, known), rows)

    def _built(self, declared: Component[ValidationDeclaration], model: Model) -> Validation:
        """A validation, whose metrics may refer to the module of `model`."""
        return build_validation(
            declared.name, declared.declaration, self._context.loader.resolve(declared), lambda: model
        )


def contents(
    context: Context, validation: Component[ValidationDeclaration], name: str, known: Catalog, ids: Sequence[Any]
) -> str | None:
    """The file with the kept contents of a dataset; None if it is not pinned, or too large."""
    dataset, key = validation.declaration.datasets[name], validation.declaration.key
    if not dataset.pin:
        return None
    fields = list(dict(context.fields(dataset.table, key, known)))
    of = pin_key(context.assignment.service, validation.name, name, dataset.dump(), fields)
    found = context.patience("rows", lambda: kept_rows.contents(context.database, of, dataset.table, fields, ids))
    if found is None and ids:
        context.voice.say(f"dataset {name!r} is too large to keep its contents: what its rows hold now counts")
    return found


def of_model(context: Context, known: Catalog, model: str) -> list[Component[ValidationDeclaration]]:
    """The validations of a model, in the order of their names. A refused one is left out, and the job's log names
    it.
    """
    for name, reason in known.refused.items():
        if name.startswith("validation/"):  # its content is not trusted, not even the model that it names
            context.voice.say(f"{name} is left out: {reason}")
    return [
        known.validations[name]
        for name in sorted(known.validations)
        if known.validations[name].declaration.model == model
    ]


def chosen(
    context: Context, validations: Sequence[Component[ValidationDeclaration]], known: Catalog
) -> dict[str, list[Any]]:
    """The rows of all datasets: chosen now, or earlier for a pinned one."""
    ids: dict[str, list[Any]] = {}
    for each in validations:
        for name, dataset in each.declaration.datasets.items():
            fields = list(dict(context.fields(dataset.table, each.declaration.key, known)))
            pinned = context.patience(
                "datasets",
                # Called at once
                lambda: kept(context.database, context.assignment.service, each.name, name, dataset.dump(), fields),  # noqa: B023
            )
            ids[f"{each.name}/{name}"] = list(pinned.ids)
    return ids
