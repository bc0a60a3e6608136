"""The rows that judge promotions, kept as they were: measures versions on those of the last promotion, and keeps those
of the next.

The rows of each dataset are kept under "validation/dataset", those of the trainer's own validation under `FOLD`. A
dataset that the last promotion did not have is measured on its present rows: then both versions are measured alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from components.declarations import TrainerDeclaration, ValidationDeclaration
from components.errors import Stopped
from components.examples import Examples
from components.model import Model
from daemon.handlers.promote import ANCHOR, LAST, better_of
from daemon.job.context import Context
from daemon.job.evaluation import Evaluation, contents
from daemon.job.pins import Pins
from daemon.store.mongo_retry import Stopping
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.judged import Judged, judges, keep_judges
from daemon.store.rows import kept_rows
from daemon.store.rows.kept_rows import KeptExamples

FOLD: Final = "fold"
LOSS: Final = "valid/loss"
"""The metric of the trainer's own validation."""

Measure = Callable[[Model, Evaluation, Examples | None], Mapping[str, float]]
"""Measures a model by an evaluation and on the rows of the trainer's own validation, if it has one."""


class Judges:
    """The judging rows of one model; `built` is any version of it."""

    def __init__(
        self,
        context: Context,
        model: str,
        trainer: TrainerDeclaration,
        validations: Sequence[Component[ValidationDeclaration]],
        known: Catalog,
        built: Model,
        measure_one: Measure,
    ) -> None:
        self._context = context
        self._model = model
        self._trainer = trainer
        self._validations = validations
        self._known = known
        self._built = built
        self._measure_one = measure_one

    def measure(
        self, pins: Pins, greater: Mapping[str, bool], live: Callable[[], Model], candidate: Callable[[], Model]
    ) -> Iterator[tuple[str, Mapping[str, float], Mapping[str, float]]]:
        """On the rows of the last promotion and on those of the anchor, in words: what the candidate is compared with,
        and its own metrics.
        """
        last, anchor = self._kept()
        before, after = self._measured(pins, last, live, candidate)
        yield LAST, before, after
        if anchor.rows != last.rows:
            before, after = self._measured(pins, anchor, live, candidate)
            yield ANCHOR, better_of(before, anchor.metrics, greater), after

    def _kept(self) -> tuple[Judged, Judged]:
        context, service = self._context, self._context.assignment.service
        return context.patience("versions", lambda: judges(context.database, service, self._model))

    def _measured(self, pins: Pins, judged: Judged, *loads: Callable[[], Model]) -> list[Mapping[str, float]]:
        """The metrics of each model on these rows; none if there are none or it cannot be measured there."""
        context, instead = self._context, dict[str, Examples]()
        judging = self._read(pins)
        for place, name in judged.rows.items():
            rows = context.patience("rows", lambda: kept_rows.kept(context.database, name))  # noqa: B023 - called at once
            if rows is not None and place in judging:
                table, key, _ = judging[place]
                instead[place] = KeptExamples(table, context.fields(table, key, self._known), rows)
        if not instead:
            return [{} for _ in loads]
        context.voice.doing("measuring on kept rows")
        evaluation = Evaluation(context, self._validations, self._known, pins.datasets, self._built, instead=instead)
        return [self._metrics(evaluation, instead.get(FOLD), load) for load in loads]

    def _metrics(self, evaluation: Evaluation, fold: Examples | None, load: Callable[[], Model]) -> Mapping[str, float]:
        try:
            return self._measure_one(load(), evaluation, fold)
        except (Stopped, Stopping):
            raise
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            self._context.voice.say(f"not measured on kept rows: {error}")
            return {}

    def keep(self, number: int, pins: Pins, metrics: Mapping[str, float], *, anew: bool) -> None:
        """Keeps the present contents of the rows that this version was measured on. They are the anchor too if only a
        person can promote it, or if a person has declared the model anew (`anew`).
        """
        context = self._context
        rows: dict[str, str] = {}
        for place, (table, key, ids) in self._read(pins).items():
            fields = list(dict(context.fields(table, key, self._known)))
            validation, _, dataset = place.partition("/")
            pinned = next((each for each in self._validations if dataset and each.name == validation), None)
            name = None if pinned is None else contents(context, pinned, dataset, self._known, ids)
            name = name or context.patience("rows", lambda: kept_rows.keep(context.database, table, fields, ids))  # noqa: B023
            if name is not None:
                rows[place] = name
        judged = Judged(rows, {name: float(value) for name, value in metrics.items()})
        _, anchor = self._kept()
        anchor = judged if anew or not anchor.rows else anchor
        service = context.assignment.service
        context.patience(
            "versions", lambda: keep_judges(context.database, service, self._model, number, judged, anchor)
        )

    def _read(self, pins: Pins) -> dict[str, tuple[str, object, Sequence[object]]]:
        """What judges: the table, key and `_id`s of each dataset."""
        found: dict[str, tuple[str, object, Sequence[object]]] = {
            f"{each.name}/{name}": (dataset.table, each.declaration.key, pins.datasets[f"{each.name}/{name}"])
            for each in self._validations
            for name, dataset in each.declaration.datasets.items()
        }
        if pins.valid is not None:
            found[FOLD] = (self._trainer.table, self._trainer.key, pins.valid)
        return found
