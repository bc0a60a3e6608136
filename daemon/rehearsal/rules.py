"""Predicts a few rows of a listener by its model, alone and in batches, as a worker would, and judges the outputs.

A model must give a row the same output alone as in any batch, in evaluation mode, and an output that can be stored.

| what is found | it is |
|---|---|
| an output of the wrong shape, one that depends on the other rows, a batch that fails, training mode | a problem |
| no real row can be predicted | a problem; a warning if an estimator has not been fitted yet |
| one bad row among good ones, a random model, too little memory for a second copy | a warning |
| a made-up row that cannot be predicted | a warning |
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from components.datatypes import Datatype, datatype
from components.declarations import ListenerDeclaration
from components.errors import OutputShapeError, PredictdError, Problem
from components.key import Key
from components.model import Model
from components.raw_value import fields, readable
from daemon.handlers.predict.decoding import arguments_of
from daemon.handlers.predict.failures import is_out_of_memory
from daemon.handlers.predict.model_threads import ModelThreads
from daemon.handlers.predict.records import Row, Seen
from daemon.handlers.predict.stages import check_storable
from daemon.logs.text import described, row_id
from daemon.rehearsal.likeness import alike
from daemon.rehearsal.sample import made_up
from daemon.store.rows.row_reader import value_at

SHOWN: Final = 80
ENOUGH: Final = 2
AGAIN: Final = 3
"""How often a row that differs in a batch is predicted alone again: a random model may have given the same twice."""
ALONE_SECONDS: Final = 4.0
"""After so long no further row is predicted alone, if `ENOUGH` rows have passed: a model may take seconds a row."""


@dataclass(frozen=True, slots=True)
class Note(Problem):
    """Something to know that is no problem. `warns`: a person should look at it."""

    warns: bool = False


@dataclass(frozen=True, slots=True)
class Passed(Note):
    """The listener's rows were predicted: how many, in how many seconds and with how many more bytes a row."""

    rows: int = 0
    seconds: float = 0.0
    memory: int = 0


def rehearsed(
    name: str,
    declared: ListenerDeclaration,
    fields: Mapping[str, str],
    model: Model,
    found: Sequence[bytes],
    calling: Callable[[], None] = lambda: None,
    threads: ModelThreads | None = None,
    left: Callable[[], float] = lambda: math.inf,
) -> Iterator[Problem]:
    """Yield the problems and notes of one listener. `found` are rows of it, documents in BSON; without any, one is made
    up. `calling` is called before each call of user code, which runs in `threads`, without them in the caller's. `left`
    returns the seconds for all of it: no call begins that would take longer than is left.
    """
    at, code = f"listeners.{name}", f"models.{declared.model}.object"
    rows = found or made_up(declared, fields)
    if not rows:
        yield Note(at, f"table `{declared.table}` has no row that matches; nothing was predicted")
        return
    stage = Stage(model, declared.parsed_key, fields, calling, declared.output, threads or ModelThreads(), left)
    good: list[tuple[Row, Any]] = []
    bad: list[str] = []
    end = time.monotonic() + ALONE_SECONDS
    for row in map(stage.row, rows):
        try:
            good.append((row, stage.outputs([row])[0]))
        except OutputShapeError as error:
            yield Problem(code, str(error)) if found else Note(at, f"a made-up row: {error}", warns=True)
            return
        except BaseException as error:  # noqa: BLE001 - user code may raise any
            if is_out_of_memory(error):
                yield Note(at, f"there is no memory to rehearse it beside what serves: {described(error)}", warns=True)
                return
            bad.append(f"row {row_id(row.key)}: {described(error)}")
        if (time.monotonic() > end and len(good) >= ENOUGH) or stage.lacks_time(1):
            break
    tried = len(good) + len(bad)
    if not found:
        what = f"cannot be predicted; {bad[0].partition(': ')[2]}" if bad else "was predicted"
        yield Note(at, f"table `{declared.table}` has no row that matches; a made-up one {what}", warns=bool(bad))
    elif not good:
        yield _none(at, bad)
    else:
        if bad:
            yield Note(at, f"{len(bad)} of {tried} rows would become dead letters; {bad[0]}", warns=True)
        yield from _in_batches(at, code, stage, good)


def _none(at: str, bad: Sequence[str]) -> Problem:
    if all("NotFittedError" in each for each in bad):
        return Note(at, "its model has learned nothing yet: rows wait for its first training", warns=True)
    return Problem(at, f"none of {len(bad)} rows can be predicted; {bad[0]}")


class Stage:
    """A model with the key of one listener."""

    def __init__(
        self,
        model: Model,
        key: Key,
        fields: Mapping[str, str],
        calling: Callable[[], None],
        output: str | None,
        threads: ModelThreads,
        left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._model = model
        self._key = key
        self._datatypes: list[Datatype | None] = [
            datatype(fields[path]) if path in fields else None for path in key.fields
        ]
        self._calling = calling
        self._left = left
        self.seconds = 0.0
        """A row's seconds in the last call; the first call may have loaded or compiled something."""
        self._output = None if output is None else datatype(output)
        self._threads = threads

    def row(self, document: bytes) -> Row:
        """The row of a document in BSON; a field that cannot be decoded counts as null."""
        found = readable(fields(document), "_id")
        return Row(found["_id"], tuple(value_at(found, path) for path in self._key.fields), b"", Seen())

    def lacks_time(self, rows: int) -> bool:
        """Return whether to predict so many rows may take longer than is left, as long as the last ones took."""
        return self.seconds * rows > self._left()

    def check_time(self, rows: int) -> None:
        """Raise _EnoughError if there is no time for so many rows."""
        if self.lacks_time(rows):
            raise _EnoughError(
                f"a row takes {self.seconds:.2g} s, so there was no time to try it in a batch; raise "
                "limits.stage_seconds to know whether its rows depend on each other"
            )

    def outputs(self, rows: Sequence[Row]) -> list[Any]:
        """Return what would be stored for each row, as the listener's `output` reads it. The model gets new arguments
        each time, as it may change them.
        """
        began = time.monotonic()
        try:
            return self._outputs(rows)
        finally:
            self.seconds = (time.monotonic() - began) / len(rows)

    def _outputs(self, rows: Sequence[Row]) -> list[Any]:
        model = self._model
        if model.by_row and len(rows) > 1:
            return [value for row in rows for value in self._outputs([row])]
        self._calling()
        inputs = self._threads.preprocess.run(_prepared, model, rows, self._key, self._datatypes)
        return self._threads.model.run(self._predicted, inputs, len(rows))

    def _predicted(self, inputs: Any, n: int) -> list[Any]:
        model = self._model
        outputs = model.infer_many(inputs, n) if model.prepare_batch else model.infer(inputs)
        with model.predicting():
            values = [model.finish(output, self._output) for output in outputs]
        for value in values:
            check_storable(value)
        return values if self._output is None else [self._output.decode(value) for value in values]

    @property
    def in_training(self) -> str | None:
        """The part of the model that is in training mode after a prediction."""
        return self._model.in_training_mode()


def _prepared(model: Model, rows: Sequence[Row], key: Key, datatypes: Sequence[Datatype | None]) -> Any:
    given = [arguments_of(row, key, datatypes) for row in rows]
    with model.predicting():
        if model.prepare_batch:
            return model.watch_batch.own(model.prepare_many(given))
        return [model.watch.own(model.prepare(arguments)) for arguments in given]


def _in_batches(at: str, code: str, stage: Stage, rows: Sequence[tuple[Row, Any]]) -> Iterator[Problem]:
    if (part := stage.in_training) is not None:
        yield Problem(
            code, f"{part} is in training mode while it predicts (dropout, batch statistics): do not call train() there"
        )
        return
    memory, seconds = _peak(), stage.seconds
    try:
        for size in [1, *(size for size in sorted({2, len(rows)}) if size <= len(rows))]:
            began = time.perf_counter()
            found = _in_one(at, code, stage, rows[:size])
            if found is not None:
                yield found
                return
            seconds = (time.perf_counter() - began) / size
    except _EnoughError as error:
        yield Note(at, str(error), warns=True)
    more = max(0, _peak() - memory) // max(1, len(rows))
    words = f"{len(rows)} rows were predicted" + (f", {1000 * seconds:.3g} ms a row" if len(rows) > 1 else "")
    yield Passed(at, words, rows=len(rows), seconds=seconds, memory=more)


def _in_one(at: str, code: str, stage: Stage, rows: Sequence[tuple[Row, Any]]) -> Problem | None:
    """Predict rows in one batch and return what is wrong with it. Raises _EnoughError if it cannot be tried."""
    size = len(rows)
    stage.check_time(size)
    try:
        found = stage.outputs([row for row, _ in rows])
    except BaseException as error:  # user code may raise any
        if is_out_of_memory(error):
            raise _EnoughError(f"a batch of {size} rows does not fit into memory: {described(error)}") from error
        what = f"a batch of {size} rows fails, and each of them alone passes" if size > 1 else "a row passes once only"
        return Problem(code, f"{what}: {described(error)}")
    for (row, expected), value in zip(rows, found, strict=False):
        if alike(expected, value):
            continue
        shown = f"row {row_id(row.key)} gives {_short(expected)}"
        if size == 1:
            return Note(at, f"{shown}, then {_short(value)}: the model is random", warns=True)
        stage.check_time(AGAIN)
        again = [stage.outputs([row])[0] for _ in range(AGAIN)]
        if not all(alike(expected, each) for each in again):
            return Note(at, f"row {row_id(row.key)} gives another output each time: the model is random", warns=True)
        return Problem(
            code,
            f"{shown} alone, and {_short(value)} in a batch of {size}: the rows of a batch must not depend on each "
            "other",
        )
    return None


class _EnoughError(PredictdError):
    """A larger batch cannot be tried, but what was tried was good."""


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
