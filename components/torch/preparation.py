"""Converts decoded rows to a training batch: applies the transform and collates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from components.errors import BatchError, TrainingError
from components.examples import paired
from components.key import Arguments
from components.shared_memory import Watch
from components.torch import batches
from components.torch.bad_rows import BadRow

if TYPE_CHECKING:
    from components.torch.module import TorchModule
    from components.torch.trainer import TorchTrainer


class Preparation:
    """Makes the pair (input, target) of a batch, on the CPU, from the rows' places and values.

    A transform receives a row's values in the key's order. Without a transform, the model's `preprocess_batch` or
    `preprocess` makes the input, and the last value is the target. Raises TrainingError, which names the row; it is a
    BadRow if the trainer passes over such rows.
    """

    def __init__(self, model: TorchModule, trainer: TorchTrainer, rows: object) -> None:
        """`rows` are the examples of the batches; if they have a method `name(place)`, errors use it to name rows."""
        self._model = model
        self._name: Callable[[int], str] = getattr(rows, "name", str)
        self._transform = trainer.transform
        self._skips = trainer.skip_bad_rows > 0
        self._watch = Watch(32)  # a batch is collated after its last row was transformed
        self._collate = trainer.loader.collate_fn
        key = trainer.key
        self._inputs = None if key is None else key.inputs

    def __call__(self, rows: list[tuple[int, tuple[Any, ...]]]) -> tuple[Any, Any]:
        if self._transform is None:
            rows = [(place, paired(row)) for place, row in rows]
        if self._transform is None and self._collate is None and self._model.prepare_batch:
            given = self._guarded(rows, "preprocess_batch", lambda: self._many(rows))
            return given, self._guarded(rows, "the targets", lambda: targets([row[-1] for _, row in rows]))
        pairs = [self._pair(place, row) for place, row in rows]
        if self._collate is not None:
            collate = self._collate
            made = self._guarded(rows, "collate_fn", lambda: collate(pairs))
            if not isinstance(made, (tuple, list)) or len(made) != 2:
                raise TrainingError(f"collate_fn: expected it to return (input, target), got {_described(made)}")
            return made[0], made[1]
        given = self._guarded(rows, "the inputs", lambda: batches.collate([x for x, _ in pairs]))
        return given, self._guarded(rows, "the targets", lambda: targets([y for _, y in pairs]))

    def _pair(self, place: int, row: tuple[Any, ...]) -> tuple[Any, Any]:
        name = "preprocess" if self._transform is None else "transform"
        try:
            if self._transform is None:
                return self._watch.own(self._model.prepare(self._arguments(row))), row[-1]
            made = self._watch.own(self._transform(*row))
        except batches.OUT_OF_MEMORY:
            raise
        except Exception as error:  # the user's function may raise anything
            raise self._failed(place, name, error) from error
        if not isinstance(made, (tuple, list)) or len(made) != 2:
            raise TrainingError(
                f"transform: expected it to return (input, target), got {_described(made)} for row {self._name(place)}"
            )
        return made[0], made[1]

    def _failed(self, place: int, name: str, error: Exception) -> TrainingError:
        message = f"{name} failed on row {self._name(place)}: {type(error).__name__}: {error}"
        return BadRow(place, message) if self._skips else TrainingError(message)

    def _many(self, rows: list[tuple[int, tuple[Any, ...]]]) -> Any:
        """Return the model's inputs by `preprocess_batch`; raises BadRow if it fails on a row alone."""
        try:
            return self._model.prepare_many([self._arguments(row) for _, row in rows])
        except batches.OUT_OF_MEMORY:
            raise
        except Exception as error:  # as above
            if self._skips and len(rows) > 1:
                for row in rows:
                    self._many([row])
            elif self._skips:
                raise self._failed(rows[0][0], "preprocess_batch", error) from error
            raise

    def _arguments(self, row: tuple[Any, ...]) -> Arguments:
        if self._inputs is not None:
            return self._inputs.arguments(row[:-1])
        # In `fit`, a row may hold an `Arguments` already.
        first = row[0]
        return first if len(row) == 2 and isinstance(first, Arguments) else Arguments(tuple(row[:-1]))

    def _guarded(self, rows: Sequence[tuple[int, Any]], what: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (*batches.OUT_OF_MEMORY, BadRow):
            raise
        except Exception as error:  # as above
            places = ", ".join(self._name(place) for place, _ in rows[:5]) + (" ..." if len(rows) > 5 else "")
            reason = str(error) if isinstance(error, BatchError) else f"{type(error).__name__}: {error}"
            raise TrainingError(f"{what} failed on the batch of rows {places}: {reason}") from error


def targets(values: list[Any]) -> Any:
    """Return targets as one batch: whole numbers as int64, floats as float32, because losses require these.

    Tensors, tuples and dicts are collated like inputs. Raises BatchError if the targets do not fit together, or have a
    type without a loss.
    """
    first = values[0]
    if isinstance(first, (str, bytes)) or first is None:
        raise BatchError(
            f"targets of type {type(first).__name__} cannot form a batch; give the trainer a transform that makes a "
            "number or a tensor of it"
        )
    collated = batches.collate(values)
    if isinstance(first, (tuple, dict)):
        parts = first.values() if isinstance(first, dict) else first
        narrow = [_is_float(part) for part in parts]
        if isinstance(collated, dict):
            return {name: _narrowed(part, yes) for (name, part), yes in zip(collated.items(), narrow, strict=True)}
        return tuple(_narrowed(part, yes) for part, yes in zip(collated, narrow, strict=True))
    return _narrowed(collated, _is_float(first))


def _is_float(value: Any) -> bool:
    """Return whether a value is a Python or numpy float or an array, for which float64 is only the default."""
    return isinstance(value, (float, np.generic, np.ndarray))


def _narrowed(collated: Any, yes: bool) -> Any:
    return (
        collated.float() if yes and isinstance(collated, torch.Tensor) and collated.dtype == torch.float64 else collated
    )


def _described(made: Any) -> str:
    return f"{len(made)} values" if isinstance(made, (tuple, list)) else type(made).__name__
