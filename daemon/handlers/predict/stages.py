"""What is done about dirty rows: judged, prepared, predicted, and turned into guarded writes and dead letters.

Pure: no storage, no threads, no clock. `judge` decides per row by rules R5, R6b and R8; `prepare` and `predict` run the
user's code and catch whatever it raises. A batch that fails is bisected until the failing row stands alone; that row
becomes a dead letter, the others get their outputs.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import bson
from bson.timestamp import Timestamp

from components.datatypes import Datatype
from components.errors import DecodeError, OutputError
from components.key import Key
from components.model import Model
from daemon.handlers.predict.dirty_keys import Batch, identity
from daemon.handlers.predict.records import Letter, Row, Snapshot, Write

LARGEST_OUTPUT: Final = 12 * 1024 * 1024  # a row may hold 16 MB, its input included
LONGEST_MESSAGE: Final = 500
LONGEST_TRACEBACK: Final = 8000
ANYTHING: Final = BaseException  # the user's code may raise any: sys.exit(), a cancelled future


@dataclass(frozen=True, slots=True)
class Live:
    """What a corridor runs: a version of a model under a generation, and how a row's stored values become its
    arguments.
    """

    model: Model
    version: int
    generation: int
    key: Key
    datatypes: tuple[Datatype | None, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """A batch after its read: the rows to predict, the writes that need no prediction, and the rows known to refuse
    theirs.
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

    `inputs` goes row by row with `rows`: preprocessed, or the arguments themselves where the model preprocesses whole
    batches; `many` then is the preprocessed batch, None where that failed and must be found out row by row.
    """

    judged: Judged
    rows: tuple[Row, ...]
    inputs: tuple[Any, ...]
    many: Any
    letters: tuple[Letter, ...]


@dataclass(frozen=True, slots=True)
class Predicted:
    """A batch ready to be written."""

    judged: Judged
    writes: tuple[Write, ...]
    letters: tuple[Letter, ...]
    predicted: int


def judge(batch: Batch, snapshot: Snapshot, live: Live, settled: Callable[[Any, bytes, int], bool]) -> Judged:
    """Decides what each row of the snapshot needs.

    `settled(key, input, generation)` says whether a row that refuses every write is known to be dead with this very
    input.
    """
    at, generation = snapshot.at, live.generation
    rows: list[Row] = []
    writes: list[Write] = []
    left: set[Hashable] = set()
    for row in snapshot.rows:
        if row.seen.input == row.input and row.seen.generation == generation:
            writes.append(Write(row.key, row.seen, "touch", at, generation))  # R5
        elif settled(row.key, row.input, generation):
            left.add(identity(row.key))
        else:
            rows.append(row)
    writes.extend(Write(key, seen, "unset", at, generation) for key, seen in snapshot.strays)  # R8
    return Judged(batch, at, live, tuple(rows), tuple(writes), frozenset(left))


def prepare(judged: Judged) -> Prepared:
    """Decodes and preprocesses the rows; one that cannot be becomes a letter."""
    live, model = judged.live, judged.live.model
    rows: list[Row] = []
    inputs: list[Any] = []
    letters: list[Letter] = []
    for row in judged.rows:
        stage = "decode"
        try:
            arguments = live.key.arguments(_decoded(row, live))
            stage = "preprocess"
            inputs.append(arguments if model.prepare_batch else model.prepare(arguments))
        except ANYTHING as error:
            letters.append(letter(row, live, stage, error))
        else:
            rows.append(row)
    many = None
    if model.prepare_batch and rows:
        try:
            many = model.prepare_many(inputs)
        except ANYTHING:
            many = None  # some row is the cause: `predict` bisects
    return Prepared(judged, tuple(rows), tuple(inputs), many, tuple(letters))


def _decoded(row: Row, live: Live) -> list[Any]:
    """The row's values as the model sees them. Raises DecodeError, naming the field."""
    values = []
    for path, datatype, value in zip(live.key.fields, live.datatypes, row.values, strict=True):
        try:
            values.append(datatype.decode(value) if datatype else value)
        except DecodeError as error:
            raise DecodeError(f"{path}: {error}") from error
    return values


def predict(prepared: Prepared, out_of_memory: Callable[[int], None]) -> Predicted:
    """Runs the model, bisecting where it fails, and makes the writes; calls `out_of_memory(rows)` where a batch was too
    large.
    """
    judged, live = prepared.judged, prepared.judged.live
    run = _Run(live.model, out_of_memory)
    outcomes = run.outcomes(prepared.inputs, prepared.many) if prepared.rows else []
    writes = list(judged.writes)
    letters = list(prepared.letters)
    for row, outcome in zip(prepared.rows, outcomes, strict=True):
        stage, error = outcome.stage, outcome.error
        if error is None:
            try:
                stage = "postprocess"
                value = live.model.finish(outcome.output)
                stage = "store"
                _storable(value)
                writes.append(_set(row, judged, {"value": value}))
                continue
            except ANYTHING as caught:
                error = caught
        letters.append(letter(row, live, stage, error))
    by_key = {identity(row.key): row for row in judged.rows}
    writes.extend(_set(by_key[identity(dead.key)], judged, {"error": dead.mark()}) for dead in letters)
    return Predicted(judged, tuple(writes), tuple(letters), len(writes) - len(judged.writes) - len(letters))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What the model made of one row, or what it raised and where."""

    output: Any = None
    stage: str = "predict"
    error: BaseException | None = None


@dataclass(slots=True)
class _Run:
    """One batch through the model, in as few calls as its rows allow."""

    model: Model
    out_of_memory: Callable[[int], None]
    stage: str = field(default="predict")

    def outcomes(self, inputs: Sequence[Any], many: Any) -> list[_Outcome]:
        if many is None:
            return self._bisect(inputs)
        try:
            return [_Outcome(output) for output in self.model.infer_many(many, len(inputs))]
        except ANYTHING as error:
            self._note(error, len(inputs))
            return self._bisect(inputs)

    def _bisect(self, inputs: Sequence[Any]) -> list[_Outcome]:
        try:
            return [_Outcome(output) for output in self._infer(inputs)]
        except ANYTHING as error:
            self._note(error, len(inputs))
            if len(inputs) == 1:
                return [_Outcome(stage=self.stage, error=error)]
        half = len(inputs) // 2
        return self._bisect(inputs[:half]) + self._bisect(inputs[half:])

    def _infer(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self.stage = "predict"
        if not self.model.prepare_batch:
            return self.model.infer(list(inputs))
        self.stage = "preprocess"
        many = self.model.prepare_many(list(inputs))
        self.stage = "predict"
        return self.model.infer_many(many, len(inputs))

    def _note(self, error: BaseException, rows: int) -> None:
        # torch's own OutOfMemoryError is known by its name: torch is not imported here.
        if rows > 1 and (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
            self.out_of_memory(rows)


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
    return Write(row.key, row.seen, "set", judged.at, live.generation, output)


def _storable(value: Any) -> None:
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


def letter(row: Row, live: Live, stage: str, error: BaseException) -> Letter:
    """The dead letter of a row that met this error in this stage."""
    text = "".join(traceback.format_exception(error))  # says so itself where str(error) raises
    return Letter(
        key=row.key,
        input=row.input,
        generation=live.generation,
        version=live.version,
        stage=stage,
        type=type(error).__name__,
        message=_text(_said(error))[:LONGEST_MESSAGE],
        traceback=_ends(_text(text)),
    )


def _text(text: str) -> str:
    """Lone surrogates cannot be stored, and a message about a row must not fail on the row's own text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _ends(text: str) -> str:
    """A long traceback without its middle: where it began, and what it came to."""
    half = LONGEST_TRACEBACK // 2
    return text if len(text) <= LONGEST_TRACEBACK else f"{text[: half - 5]}\n...\n{text[-half:]}"


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except ANYTHING:  # an error of the user's own making may fail even at that
        return "(this error has no readable message)"
