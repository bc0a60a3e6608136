"""Runs one batch through the model, in as few calls as possible; a batch that fails is bisected.

Each call's outputs are finished (postprocessed and converted to BSON) before the model is called again, because it may
write into the same memory. Rows that are asked again are decoded and preprocessed again, because the model may have
changed its inputs in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from components.datatypes import Datatype
from components.errors import OutputShapeError
from components.model import Model
from daemon.handlers.predict.failures import ANYTHING
from daemon.handlers.predict.interpreter_turn import Turn


@dataclass(frozen=True, slots=True)
class Outcome:
    """The value to store for one row, or the error that it met and the stage."""

    value: Any = None
    stage: str = "predict"
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Attempts:
    """`fresh(place)` returns a row's input anew, or raises; `failed(error, rows)` is called after each failed call."""

    model: Model
    fresh: Callable[[int], Any]
    prepare_many: Callable[[list[Any]], Any]
    store: Callable[[Any], None]
    failed: Callable[[BaseException, int], None]
    turn: Turn
    output: Datatype | None = None
    """The datatype of the outputs, if the listener declares one."""

    def outcomes(self, inputs: Sequence[Any], many: Any) -> list[Outcome]:
        """Return one outcome for each row."""
        if self.model.by_row:
            return [outcome for input_ in inputs for outcome in self._once([input_], None) or []]
        if many is None and self.model.prepare_batch:  # preparing this batch has failed
            return self._halves(0, len(inputs))
        done = self._once(inputs, many)
        return self._halves(0, len(inputs)) if done is None else done

    def _halves(self, start: int, end: int) -> list[Outcome]:
        """The outcomes of rows `start` to `end`, a batch that has failed, by its halves."""
        if end - start == 1:
            return self._again(start, end)
        middle = (start + end) // 2
        return self._again(start, middle) + self._again(middle, end)

    def _again(self, start: int, end: int) -> list[Outcome]:
        inputs, outcomes = [], {}
        for place in range(start, end):
            try:
                inputs.append(self.fresh(place))
            except ANYTHING as error:
                outcomes[place] = Outcome(stage="preprocess", error=error)
        if not outcomes:
            done = self._once(inputs, None)
            return self._halves(start, end) if done is None else done
        if end - start == 1:
            return list(outcomes.values())
        return self._halves(start, end)

    def _once(self, inputs: Sequence[Any], many: Any) -> list[Outcome] | None:
        """The outcomes of one call; None if it failed and the batch can be bisected."""
        stage = "predict"
        try:
            if many is None and self.model.prepare_batch:
                stage = "preprocess"
                many = self.prepare_many(list(inputs))
                stage = "predict"
            given = list(inputs) if many is None else many
            outputs = self.model.infer(given) if many is None else self.model.infer_many(given, len(inputs))
        except OutputShapeError as error:  # a smaller batch might fit by chance: 2 heads look like 2 rows
            return [Outcome(error=error)] * len(inputs)
        except ANYTHING as error:
            self.failed(error, len(inputs))
            return [Outcome(stage=stage, error=error)] if len(inputs) == 1 else None
        with self.turn.taken(len(inputs)), self.model.predicting():
            return [self._finished(output) for output in outputs]

    def _finished(self, output: Any) -> Outcome:
        stage = "postprocess"
        try:
            value = self.model.finish(output) if self.output is None else self.model.finish(output, self.output)
            stage = "store"
            self.store(value)
        except ANYTHING as error:
            return Outcome(stage=stage, error=error)
        return Outcome(value)
