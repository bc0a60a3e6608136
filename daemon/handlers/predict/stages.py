"""The steps for dirty rows: judge, prepare and predict them, and make guarded writes and dead letters.

Pure: no storage, no clock. `judge` decides per row by rules R5, R6b and R8; `prepare` and `predict` run the
user's code and catch everything that it raises. A batch that fails is bisected until the failing row is alone; that row
gets a dead letter, the others get their outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, replace
from typing import Any, Final

import bson
from bson.timestamp import Timestamp

from components.errors import OutputError
from daemon.handlers.predict.attempts import Attempts
from daemon.handlers.predict.decoding import arguments_of
from daemon.handlers.predict.dirty_keys import Batch
from daemon.handlers.predict.failures import is_out_of_memory
from daemon.handlers.predict.letters import letter
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.preparing import make
from daemon.handlers.predict.records import Guilt, Letter, Row, Snapshot, Write

LARGEST_OUTPUT: Final = 12 * 1024 * 1024  # a row may hold 16 MB, its input included


@dataclass(frozen=True, slots=True)
class Judged:
    """A batch after its read: the rows to predict, the writes that need no prediction, and the rows known to refuse
    their writes.
    """

    batch: Batch
    at: Timestamp
    live: Live
    rows: tuple[Row, ...]
    writes: tuple[Write, ...]
    settled: frozenset[Hashable]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch ready for the model.

    `inputs` has one item for each of `rows`: its preprocessed input, None if that is in `many`. `many` is the batch of
    them, made here so that the next stage has only to run the model; None if it could not be made, or if the model
    makes it. User code may change an input in place, so each input is used once: `predict` makes new ones when it
    bisects.
    """

    judged: Judged
    rows: tuple[Row, ...]
    inputs: tuple[Any, ...]
    many: Any
    letters: tuple[Letter, ...]
    left: tuple[Row, ...] = ()
    """Rows for which there was no room; they are no longer in `judged`."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """A batch ready to be written."""

    judged: Judged
    writes: tuple[Write, ...]
    letters: tuple[Letter, ...]
    predicted: int

    def without(self, names: Collection[Hashable]) -> Predicted:
        """The batch without these rows, their outputs, letters and keys."""
        judged = self.judged
        batch = replace(judged.batch, keys=tuple(k for k in judged.batch.keys if k.name not in names))
        rows = tuple(row for row in judged.rows if row.name not in names)
        letters = tuple(letter for letter in self.letters if letter.name not in names)
        writes = tuple(write for write in self.writes if write.name not in names)
        predicted = len(writes) - len(judged.writes) - len(letters)
        return Predicted(replace(judged, batch=batch, rows=rows), writes, letters, predicted)


def judge(
    batch: Batch,
    snapshot: Snapshot,
    live: Live,
    settled: Callable[[Hashable, bytes, int, bool], bool],
    lettered: Callable[[Hashable, bytes, int], bool] = lambda _name, _input, _generation: True,
) -> Judged:
    """Decides what each row of the snapshot needs.

    `settled(name, input, generation, scanned)` returns whether a row that refuses every write stays dead; `scanned` is
    true if a scan named the row, false if an event did, or one that was dropped may have. `lettered(name, input,
    generation)` returns whether a row that says that it is dead has a dead letter: without one, somebody else wrote the
    error, and the row is predicted.
    """
    at, generation = snapshot.at, live.generation
    scanned = {key.name for key in batch.keys if key.lane == "scan" and not key.owed}
    rows: list[Row] = []
    writes: list[Write] = []
    left: set[Hashable] = set()
    for row in snapshot.rows:
        current = row.seen.input == row.input and row.seen.generation == generation
        if current and (not row.seen.error or lettered(row.name, row.input, generation)):
            writes.append(Write(row.key, row.seen, "touch", at, generation, name=row.name))  # R5
        elif settled(row.name, row.input, generation, row.name in scanned):
            left.add(row.name)
        else:
            rows.append(row)
    writes.extend(Write(key, seen, "unset", at, generation) for key, seen in snapshot.strays)  # R8
    return Judged(batch, at, live, tuple(rows), tuple(writes), frozenset(left))


def prepare(
    judged: Judged,
    guilt: Callable[[Row, int], Guilt | None] = lambda _row, _generation: None,
    room: float = math.inf,
    out_of_memory: Callable[[int], None] = lambda _: None,
) -> Prepared:
    """Decodes and preprocesses the rows, in chunks. One that fails gets a letter, and so does a guilty one.

    The inputs may take `room` bytes; rows beyond that are left. If memory runs out, the remaining rows are left, with
    half of the rows prepared so far.
    """
    live = judged.live
    letters: list[Letter] = []
    todo: list[Row] = []
    for row in judged.rows:
        guilty = guilt(row, live.generation)
        if guilty is None:
            todo.append(row)
        else:
            dead = letter(row, live, "predict", RuntimeError(guilty.message))
            letters.append(replace(dead, type=guilty.type, cause="row"))
    found = make(live, todo, room)
    if found.out_of_memory:
        out_of_memory(found.out_of_memory)
    for place, each in found.letters:
        letters.append(replace(each, key=todo[place].key, input=todo[place].input))
    left = tuple(todo[place] for place in found.left)
    if left:
        names = {row.name for row in left}
        keys = tuple(key for key in judged.batch.keys if key.name not in names)
        some = tuple(row for row in judged.rows if row.name not in names)
        judged = replace(judged, batch=replace(judged.batch, keys=keys), rows=some)
    rows = tuple(todo[place] for place in found.places)
    return Prepared(judged, rows, tuple(found.inputs), found.many, tuple(letters), left)


def _input(row: Row, live: Live) -> Any:
    """The input of a row, for another attempt."""
    arguments = arguments_of(row, live.key, live.datatypes)
    return arguments if live.model.prepare_batch else live.model.watch.own(live.model.prepare(arguments))


def predict(prepared: Prepared, out_of_memory: Callable[[int], None]) -> Predicted:
    """Runs the model, bisects a batch that fails, and makes the writes. Calls `out_of_memory(rows)` if a batch was too
    large. Raises AcceleratorLost.
    """
    judged, live = prepared.judged, prepared.judged.live

    def failed(error: BaseException, rows: int) -> None:
        live.check_usable(error)
        if rows > 1 and is_out_of_memory(error):
            out_of_memory(rows)

    def fresh(place: int) -> Any:
        return live.threads.preprocess.run(_input, prepared.rows[place], live)

    def prepare_many(inputs: list[Any]) -> Any:
        return live.threads.preprocess.run(live.model.prepare_many, inputs)

    attempts = Attempts(live.model, fresh, prepare_many, check_storable, failed, live.threads.model.turn, live.output)
    outcomes = attempts.outcomes(prepared.inputs, prepared.many) if prepared.rows else []
    writes = list(judged.writes)
    letters = list(prepared.letters)
    for row, outcome in zip(prepared.rows, outcomes, strict=True):
        if outcome.error is None:
            writes.append(_set(row, judged, {"value": outcome.value}))
        else:
            live.check_usable(outcome.error)
            letters.append(letter(row, live, outcome.stage, outcome.error))
    by_key = {row.name: row for row in judged.rows}
    writes.extend(_set(by_key[dead.name], judged, {"error": dead.mark()}) for dead in letters)
    return Predicted(judged, tuple(writes), tuple(letters), len(writes) - len(judged.writes) - len(letters))


def _set(row: Row, judged: Judged, what: dict[str, Any]) -> Write:
    live = judged.live
    output = {
        **what,
        "model": live.model.identifier,
        "version": live.version,
        "generation": live.generation,
        "asof": judged.at,
        "input": row.input,
    }
    return Write(row.key, row.seen, "set", judged.at, live.generation, output, row.name)


def check_storable(value: Any) -> None:
    """Raise OutputError if MongoDB cannot store a value in a row."""
    if isinstance(value, float) or value is None or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return
    try:
        size = len(bson.encode({"": value}))
    except (bson.errors.InvalidDocument, OverflowError, UnicodeError) as error:
        raise OutputError(f"the output cannot be stored in MongoDB: {error}") from error
    if size > LARGEST_OUTPUT:
        raise OutputError(
            f"the output takes {size} bytes, and a row of MongoDB holds 16 MB with its input; return less, or a vector"
        )
