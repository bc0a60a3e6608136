"""What is done about dirty rows: judged, prepared, predicted, and turned into guarded writes and dead letters.

Pure: no storage, no threads, no clock. `judge` decides per row by rules R5, R6b and R8; `prepare` and `predict` run the
user's code and catch whatever it raises. A batch that fails is bisected until the failing row stands alone; that row
becomes a dead letter, the others get their outputs.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import bson
from bson.timestamp import Timestamp

from components.datatypes import Datatype
from components.errors import DecodeError, OutputError, Retry
from components.key import Arguments, Key
from components.model import Model
from daemon.handlers.predict.dirty_keys import Batch, identity
from daemon.handlers.predict.records import Guilt, Letter, Row, Snapshot, Undecodable, Write

LARGEST_OUTPUT: Final = 12 * 1024 * 1024  # a row may hold 16 MB, its input included
LONGEST_MESSAGE: Final = 500
LONGEST_TRACEBACK: Final = 8000
MANY: Final = 10_000  # items of a list are not weighed one by one if there are as many
PASSING: Final = frozenset({"TransportError", "Timeout", "ConnectionError", "URLError", "HTTPConnectionError"})
"""Names of errors of clients (httpx, requests, urllib, botocore) that another attempt may spare."""

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
    left: tuple[Row, ...] = ()
    """Rows for which there was no room; they are no longer part of `judged`."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """A batch ready to be written."""

    judged: Judged
    writes: tuple[Write, ...]
    letters: tuple[Letter, ...]
    predicted: int

    def without(self, names: Collection[Hashable]) -> Predicted:
        """The batch without these rows: their outputs, their letters, their keys."""
        judged = self.judged
        batch = replace(judged.batch, keys=tuple(k for k in judged.batch.keys if identity(k.key) not in names))
        rows = tuple(row for row in judged.rows if identity(row.key) not in names)
        letters = tuple(letter for letter in self.letters if identity(letter.key) not in names)
        writes = tuple(write for write in self.writes if identity(write.key) not in names)
        predicted = len(writes) - len(judged.writes) - len(letters)
        return Predicted(replace(judged, batch=batch, rows=rows), writes, letters, predicted)


def judge(batch: Batch, snapshot: Snapshot, live: Live, settled: Callable[[Any, bytes, int, bool], bool]) -> Judged:
    """Decides what each row of the snapshot needs.

    `settled(key, input, generation, scanned)` tells whether a row that refuses every write stays dead: `scanned` if a
    scan named it, and not an event of its own.
    """
    at, generation = snapshot.at, live.generation
    scanned = {identity(key.key) for key in batch.keys if key.lane == "scan"}
    rows: list[Row] = []
    writes: list[Write] = []
    left: set[Hashable] = set()
    for row in snapshot.rows:
        if row.seen.input == row.input and row.seen.generation == generation:
            writes.append(Write(row.key, row.seen, "touch", at, generation))  # R5
        elif settled(row.key, row.input, generation, identity(row.key) in scanned):
            left.add(identity(row.key))
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
    """Decodes and preprocesses the rows; one that cannot be becomes a letter, and so does one that is guilty.

    The inputs may take `room` bytes: rows beyond that are left. So are those for which memory does not suffice, and
    half of what was prepared before them.
    """
    live, model = judged.live, judged.live.model
    rows: list[Row] = []
    inputs: list[Any] = []
    letters: list[Letter] = []
    held = 0
    for place, row in enumerate(judged.rows):
        guilty = guilt(row, live.generation)
        if guilty is not None:
            letters.append(replace(letter(row, live, "predict", RuntimeError(guilty.message)), type=guilty.type))
            continue
        stage = "decode"
        try:
            arguments = live.key.arguments(_decoded(row, live))
            stage = "preprocess"
            input_ = arguments if model.prepare_batch else model.prepare(arguments)
        except ANYTHING as error:
            if is_out_of_memory(error) and rows:
                out_of_memory(len(rows) + 1)
                keep = max(1, len(rows) // 2)
                left = (*rows[keep:], *judged.rows[place:])
                return _prepared(judged, rows[:keep], inputs[:keep], letters, left)
            letters.append(letter(row, live, stage, error))
            continue
        rows.append(row)
        inputs.append(input_)
        held += weight(input_)
        if held > room:
            return _prepared(judged, rows, inputs, letters, judged.rows[place + 1 :])
    return _prepared(judged, rows, inputs, letters, ())


def _prepared(
    judged: Judged, rows: list[Row], inputs: list[Any], letters: list[Letter], left: tuple[Row, ...]
) -> Prepared:
    if left:
        names = {identity(row.key) for row in left}
        keys = tuple(key for key in judged.batch.keys if identity(key.key) not in names)
        some = tuple(row for row in judged.rows if identity(row.key) not in names)
        judged = replace(judged, batch=replace(judged.batch, keys=keys), rows=some)
    model = judged.live.model
    many = None
    if model.prepare_batch and rows:
        try:
            many = model.prepare_many(inputs)
        except ANYTHING:
            many = None  # some row is the cause: `predict` bisects
    return Prepared(judged, tuple(rows), tuple(inputs), many, tuple(letters), left)


def weight(value: Any) -> int:
    """About how many bytes an input takes: pictures, arrays, tensors, texts, and what holds them."""
    bands = getattr(value, "getbands", None)
    if bands is not None:
        return int(value.width * value.height * len(bands()))
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Arguments):
        return weight(value.args) + weight(value.kwargs)
    if isinstance(value, Mapping):
        value = list(value.values())
    return sum(map(weight, value)) if isinstance(value, (list, tuple)) and len(value) < MANY else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no room for a batch; torch's own error is known by its name: torch is not imported here."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_transient(error: BaseException | None) -> bool:
    """Whether another attempt may go well: `Retry`, no connection, a timeout, no memory; also as another's cause."""
    for _ in range(5):
        if error is None:
            return False
        names = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, (Retry, ConnectionError, TimeoutError)) or is_out_of_memory(error) or names & PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def _decoded(row: Row, live: Live) -> list[Any]:
    """The row's values as the model sees them. Raises DecodeError, naming the field."""
    values = []
    for path, datatype, value in zip(live.key.fields, live.datatypes, row.values, strict=True):
        if isinstance(value, Undecodable):
            raise DecodeError(f"{path}: {value.reason}")
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
        if rows > 1 and is_out_of_memory(error):
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
        cause="row" if isinstance(error, DecodeError) else "transient" if is_transient(error) else "model",
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
