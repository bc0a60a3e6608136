"""What is done about dirty rows: which are predicted, touched or cleared, and what becomes of a row that fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from bson.timestamp import Timestamp
from harness.parameters import shown

from components.datatypes import datatype
from components.errors import OutputError
from components.key import Arguments, Key
from components.model import Model, ObjectModel
from daemon.handlers.predict.decoding import CHUNK_BYTES, CHUNK_ROWS, LARGE_BYTES, Decoders
from daemon.handlers.predict.dirty_keys import Batch, DirtyKey
from daemon.handlers.predict.letters import LONGEST_MESSAGE, LONGEST_TRACEBACK
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.model_threads import ModelThreads
from daemon.handlers.predict.records import Row, Seen, Snapshot
from daemon.handlers.predict.stages import (
    LARGEST_OUTPUT,
    Judged,
    Predicted,
    judge,
    predict,
    prepare,
)

AT = Timestamp(100, 1)
BEFORE = Timestamp(50, 1)
GENERATION = 3


def live(model: Any, key: Any = "x", *types: str | None) -> Live:
    """A model, or a function that is called once a row, live as version 7 of generation 3."""
    model = model if isinstance(model, Model) else ObjectModel("f", model)
    return Live(model, 7, GENERATION, Key.parse(key), tuple(datatype(t) if t else None for t in types) or (None,))


def row(key: Any, *values: Any, seen: Seen | None = None) -> Row:
    return Row(key, values, f"hash of {values!r}".encode(), seen or Seen())


def judged(model: Live, *rows: Row, strays: tuple[Any, ...] = ()) -> Judged:
    batch = Batch(tuple(DirtyKey(each.key, "live") for each in rows))
    return judge(batch, Snapshot(AT, rows, strays, ()), model, lambda *_: False)


def outcome(model: Live, *rows: Row) -> Predicted:
    """The rows through all three steps."""
    return predict(prepare(judged(model, *rows)), lambda _: None)


def values(predicted: Predicted) -> dict[Any, Any]:
    """Of each written row its value, or the type of its error."""
    outputs = {write.key: write.output or {} for write in predicted.writes}
    return {key: out["value"] if "value" in out else out["error"]["type"] for key, out in outputs.items()}


class Counting:
    """A batched model that raises where a batch holds poison, and counts."""

    def __init__(self, poison: Callable[[Any], BaseException | None]) -> None:
        self.poison = poison
        self.calls: list[int] = []

    def __call__(self, xs: list[Any]) -> list[Any]:
        self.calls.append(len(xs))
        for x in xs:
            error = self.poison(x)
            if error is not None:
                raise error
        return [x * 2 for x in xs]


def counting(poison: Callable[[Any], BaseException | None]) -> tuple[Live, Counting]:
    function = Counting(poison)
    return live(ObjectModel("f", function, batched=True)), function


# ---- judging --------------------------------------------------------------------------------------------------------


def test_a_row_without_an_output_is_predicted() -> None:
    """And nothing is written for it yet."""
    found = judged(live(str), row(1, "a"))
    assert [each.key for each in found.rows] == [1]
    assert found.writes == ()


def test_a_row_whose_output_is_current_is_touched() -> None:
    """Same input, same generation; an error mark counts as an output."""
    rows = [row(1, "a"), row(2, "a")]
    rows = [
        row(each.key, *each.values, seen=Seen(BEFORE, GENERATION, each.input, error=each.key == 2, present=True))
        for each in rows
    ]
    found = judged(live(str), *rows)
    assert found.rows == ()
    assert [(w.key, w.kind, w.asof, w.seen.asof, w.output) for w in found.writes] == [
        (1, "touch", AT, BEFORE, None),
        (2, "touch", AT, BEFORE, None),
    ]


@pytest.mark.parametrize(
    "seen",
    [
        Seen(BEFORE, GENERATION, b"another input", present=True),
        Seen(BEFORE, GENERATION - 1, b"hash of ('a',)", present=True),
        Seen(BEFORE, GENERATION + 1, b"hash of ('a',)", present=True),
        Seen(BEFORE, GENERATION, None, present=True),
    ],
    ids=["another input", "an older generation", "a generation that never was", "no input hash"],
)
def test_a_row_whose_output_is_not_current_is_predicted(seen: Seen) -> None:
    """Its write will name the output's asof as it was seen."""
    predicted = outcome(live(str.upper), row(1, "a", seen=seen))
    (write,) = predicted.writes
    assert (write.kind, write.seen, write.output) == (
        "set",
        seen,
        {"value": "A", "model": "f", "version": 7, "generation": 3, "asof": AT, "input": b"hash of ('a',)"},
    )


def test_a_stray_loses_its_output() -> None:
    """It exists, does not match, and holds an output."""
    seen = Seen(BEFORE, 1, b"", present=True)
    found = judged(live(str), strays=((1, seen),))
    assert [(w.key, w.kind, w.seen) for w in found.writes] == [(1, "unset", seen)]


def test_a_row_that_is_known_to_refuse_its_write_is_left_alone() -> None:
    """For this input and this generation, if a scan named it: an event of the row may be the one that mends it."""
    known = {(_name(key), b"hash of ('a',)", GENERATION, True) for key in (1, 3)}
    batch = Batch((DirtyKey(1, "scan"), DirtyKey(2, "scan"), DirtyKey(3, "live")))
    snapshot = Snapshot(AT, (row(1, "a"), row(2, "a"), row(3, "a")), (), ())
    found = judge(batch, snapshot, live(str), lambda *asked: asked in known)
    assert found.settled == {_name(1)}
    assert [each.key for each in found.rows] == [2, 3]


def _name(key: Any) -> Any:
    from components.raw_value import identity

    return identity(key)


# ---- preparing ------------------------------------------------------------------------------------------------------


def test_a_value_of_another_type_is_a_dead_letter_of_its_row_alone() -> None:
    """The others are predicted."""
    predicted = outcome(live(lambda x: x + 1, "x", "int"), row(1, 1), row(2, "two"), row(3, None), row(4, 4))
    assert values(predicted) == {1: 2, 2: "DecodeError", 3: "DecodeError", 4: 5}
    assert [(dead.key, dead.stage) for dead in predicted.letters] == [(2, "decode"), (3, "decode")]
    assert predicted.predicted == 2


def test_the_reason_names_the_field() -> None:
    """A listener may read several, and the message is all that a reader of the row gets."""
    predicted = outcome(live(lambda a, b: a + b, ["a", "b"], "int", "int"), row(1, 1, "two"))
    assert predicted.letters[0].message.startswith("b: expected an int, got str")


def test_several_fields_become_arguments_by_place_or_by_name() -> None:
    """As the listener's key says."""
    assert values(outcome(live(lambda a, b: [a, b], ["a", "b"], None, None), row(1, "x", "y"))) == {1: ["x", "y"]}
    assert values(outcome(live(lambda u, v: [u, v], {"a": "v", "b": "u"}, None, None), row(1, "x", "y"))) == {
        1: ["y", "x"]
    }


def test_a_preprocess_that_raises_says_so() -> None:
    """In the letter's stage, with its traceback."""

    def preprocess(x: int) -> int:
        return 1 // x

    predicted = outcome(live(ObjectModel("f", lambda x: x, preprocess)), row(1, 0), row(2, 1))
    assert values(predicted) == {1: "ZeroDivisionError", 2: 1}
    (dead,) = predicted.letters
    assert dead.stage == "preprocess"
    assert "in preprocess" in dead.traceback
    assert (dead.input, dead.generation, dead.version) == (b"hash of (0,)", GENERATION, 7)


def test_a_postprocess_that_raises_costs_its_row_alone() -> None:
    """And the model is not asked again."""
    calls: list[int] = []
    model = ObjectModel("f", lambda x: calls.append(x) or x, postprocess=lambda y: 1 // y)
    predicted = outcome(live(model), row(1, 0), row(2, 1))
    assert values(predicted) == {1: "ZeroDivisionError", 2: 1}
    assert predicted.letters[0].stage == "postprocess"
    assert calls == [0, 1]


# ---- bisecting ------------------------------------------------------------------------------------------------------


def test_a_good_batch_is_one_call() -> None:
    """However large."""
    model, function = counting(lambda _: None)
    predicted = outcome(model, *(row(n, n) for n in range(256)))
    assert values(predicted) == {n: n * 2 for n in range(256)}
    assert function.calls == [256]


@pytest.mark.parametrize("place", [0, 100, 255])
def test_one_poison_row_of_256_costs_seventeen_calls(place: int) -> None:
    """Halves, two a level, down to the row that stands alone: 255 outputs and one letter."""
    model, function = counting(lambda x: ValueError("poison") if x == place else None)
    predicted = outcome(model, *(row(n, n) for n in range(256)))
    assert values(predicted) == {n: "ValueError" if n == place else n * 2 for n in range(256)}
    assert predicted.predicted == 255
    assert [(dead.key, dead.message) for dead in predicted.letters] == [(place, "poison")]
    assert sorted(function.calls) == sorted([256] + [size for n in range(8) for size in (2**n, 2**n)])


def test_a_batch_of_poison_costs_twice_its_rows() -> None:
    """The worst that can be: every row is found out by itself."""
    model, function = counting(lambda _: ValueError("poison"))
    predicted = outcome(model, *(row(n, n) for n in range(64)))
    assert set(values(predicted).values()) == {"ValueError"}
    assert len(function.calls) == 127


def test_an_odd_number_of_rows_is_halved_too() -> None:
    """None is left out, none comes twice, and their order stays."""
    model, _ = counting(lambda x: ValueError("poison") if x in {3, 6} else None)
    predicted = outcome(model, *(row(n, n) for n in range(7)))
    assert values(predicted) == {n: "ValueError" if n in {3, 6} else n * 2 for n in range(7)}


class BatchPrepared(Model):
    """A model that preprocesses whole batches; either step may be poisoned."""

    def __init__(self, *, preparing: Any = None, inferring: Any = None) -> None:
        super().__init__("f")
        self.preparing, self.inferring = preparing, inferring
        self.prepared: list[int] = []
        self.inferred: list[int] = []

    @property
    def prepare_batch(self) -> bool:
        return True

    def prepare(self, arguments: Arguments) -> Any:
        raise AssertionError("a batch is prepared as a whole")

    def prepare_many(self, rows: list[Arguments]) -> Any:
        self.prepared.append(len(rows))
        xs = [arguments.args[0] for arguments in rows]
        if self.preparing in xs:
            raise ValueError("cannot be prepared")
        return xs

    def infer(self, xs: list[Any]) -> list[Any]:
        raise AssertionError("a batch is inferred as a whole")

    def infer_many(self, batch: Any, n: int) -> list[Any]:
        self.inferred.append(n)
        if self.inferring in batch:
            raise ValueError("cannot be inferred")
        return [x * 2 for x in batch]


def test_a_batched_preprocess_is_called_once_where_nothing_fails() -> None:
    """And its result goes to the model as it is."""
    model = BatchPrepared()
    assert values(outcome(live(model), row(1, 1), row(2, 2))) == {1: 2, 2: 4}
    assert (model.prepared, model.inferred) == ([2], [2])


@pytest.mark.parametrize(("poison", "stage"), [("preparing", "preprocess"), ("inferring", "predict")])
def test_a_batched_preprocess_is_bisected_with_its_model(poison: str, stage: str) -> None:
    """Whichever of the two fails, the letter says which."""
    model = BatchPrepared(**{poison: 5})
    predicted = outcome(live(model), *(row(n, n) for n in range(16)))
    assert values(predicted) == {n: "ValueError" if n == 5 else n * 2 for n in range(16)}
    assert [(dead.key, dead.stage) for dead in predicted.letters] == [(5, stage)]
    assert len(model.prepared) <= 11


def spoiled(document: Any) -> Any:
    """Works in place on its input; raises for poison once it has done so."""
    document["parts"].append("seen")
    if "poison" in document["parts"]:
        raise ValueError("poison")
    return list(document["parts"])


def spoiled_all(documents: list[Any]) -> list[Any]:
    for document in documents:
        document["parts"].append("seen")
    if any("poison" in document["parts"] for document in documents):
        raise ValueError("poison")
    return [list(document["parts"]) for document in documents]


class SpoilingPreprocess(BatchPrepared):
    """Preprocesses whole batches, in place."""

    def prepare_many(self, rows: list[Arguments]) -> Any:
        return spoiled_all([row.args[0] for row in rows])

    def infer_many(self, batch: Any, n: int) -> list[Any]:
        return list(batch)


@pytest.mark.parametrize("type_", [None, "json"])
@pytest.mark.parametrize(
    "model",
    [
        ObjectModel("f", spoiled),
        ObjectModel("f", spoiled_all, batched=True),
        ObjectModel("f", lambda x: x, preprocess=spoiled),
        SpoilingPreprocess(),
    ],
    ids=["a row at a time", "a batch at a time", "a preprocess", "a preprocess of batches"],
)
def test_a_model_that_works_in_place_is_given_the_row_anew(model: Model, type_: str | None) -> None:
    """The inputs that a failed attempt has changed are not used again."""
    rows = [row(n, {"parts": ["poison" if n == 5 else n]}) for n in range(8)]
    found = values(outcome(live(model, "x", type_), *rows))
    assert found == {n: "ValueError" if n == 5 else [n, "seen"] for n in range(8)}


def test_running_out_of_memory_halves_the_batch_and_is_told() -> None:
    """What fits lands, and the cap learns how many rows were too many."""

    class OutOfMemoryError(RuntimeError):
        """Named as torch's."""

    calls: list[int] = []

    def model(xs: list[Any]) -> list[Any]:
        calls.append(len(xs))
        if len(xs) > 50:
            raise OutOfMemoryError if len(calls) % 2 else MemoryError
        return xs

    told: list[int] = []
    ready = prepare(judged(live(ObjectModel("f", model, batched=True)), *(row(n, n) for n in range(200))))
    predicted = predict(ready, told.append)
    assert predicted.predicted == 200
    assert not predicted.letters
    assert told == [200, 100, 100]


def test_a_single_row_that_needs_too_much_memory_is_dead() -> None:
    """A smaller batch than one there is not."""

    def model(_: Any) -> Any:
        raise MemoryError("cannot allocate 3 TB")

    told: list[int] = []
    predicted = predict(prepare(judged(live(model), row(1, 1))), told.append)
    assert values(predicted) == {1: "MemoryError"}
    assert told == []


def test_a_batch_with_too_few_or_too_many_outputs_is_refused_whole() -> None:
    """It is not bisected: a smaller batch could fit by chance, and rows would get other rows' outputs."""
    for answer in (lambda xs: xs[:1], lambda xs: xs * 2, lambda xs: [xs[0], xs[1]] if len(xs) > 1 else xs):
        rows = [row(1, "a"), row(2, "b"), row(3, "c")]
        predicted = outcome(live(ObjectModel("f", answer, batched=True)), *rows)
        assert values(predicted) == dict.fromkeys((1, 2, 3), "OutputShapeError")


# ---- chunks ---------------------------------------------------------------------------------------------------------


class Stored:
    """A datatype that notes what is decoded, and fails if it is set to."""

    def __init__(self, steps: list[str], size: int = 1, fails: Callable[[Any], BaseException | None] | None = None):
        self._steps, self._size, self._fails = steps, size, fails or (lambda _: None)

    def decode(self, value: Any) -> Any:
        self._steps.append(f"decode {value}")
        error = self._fails(value)
        if error is not None:
            raise error
        return bytes(self._size)


@pytest.mark.parametrize(
    ("size", "held"), [(1, CHUNK_ROWS), (CHUNK_BYTES // 4, 5), (CHUNK_BYTES + 1, 1)], ids=["rows", "bytes", "one"]
)
def test_a_chunk_is_decoded_and_then_preprocessed(size: int, held: int) -> None:
    """No more decoded values are held than so many rows, or so many bytes."""
    steps: list[str] = []
    model = ObjectModel("f", len, preprocess=lambda x: steps.append("preprocess") or x)
    ready = prepare(judged(live_of(model, Stored(steps, size)), *(row(n, n) for n in range(150))))
    assert [each.key for each in ready.rows] == list(range(150))
    most = level = 0
    for step in steps:
        level += 1 if step.startswith("decode") else -1
        most = max(most, level)
    assert (most, level) == (held, 0)


def test_rows_that_cannot_be_decoded_or_preprocessed_are_dead_in_any_chunk() -> None:
    """Each with its stage; every other row is prepared once."""
    stored = Stored([], fails=lambda n: ValueError("decode") if n % 50 == 0 else None)
    seen: list[Any] = []

    def preprocess(x: Any) -> Any:
        seen.append(x)
        if len(seen) == 100:
            raise ValueError("preprocess")
        return x

    model = ObjectModel("f", len, preprocess=preprocess)
    ready = prepare(judged(live_of(model, stored), *(row(n, n) for n in range(200))))
    assert sorted((dead.key, dead.stage) for dead in ready.letters) == [
        *((n, "decode") for n in (0, 50, 100)),
        (102, "preprocess"),
        (150, "decode"),
    ]
    assert len(ready.rows) == 195
    assert not ready.left


@pytest.mark.parametrize("fails_at", [1, 63, 64, 65, 100])
def test_memory_that_runs_out_while_decoding_leaves_the_rest_for_later(fails_at: int) -> None:
    """What was decoded before is preprocessed and freed first; only if that does not help are rows left."""
    told: list[int] = []
    always = Stored([], fails=lambda n: MemoryError() if n >= fails_at else None)
    ready = prepare(
        judged(live_of(ObjectModel("f", len), always), *(row(n, n) for n in range(200))), out_of_memory=told.append
    )
    assert told == [fails_at + 1]
    assert len(ready.rows) == max(1, fails_at // 2)
    assert [each.key for each in (*ready.rows, *ready.left)] == list(range(200))
    assert not ready.letters

    tries: list[str] = []
    once = Stored(tries, fails=lambda n: MemoryError() if n == fails_at and tries.count(f"decode {n}") == 1 else None)
    ready = prepare(judged(live_of(ObjectModel("f", len), once), *(row(n, n) for n in range(200))))
    if fails_at % CHUNK_ROWS:
        assert [each.key for each in ready.rows] == list(range(200))


class Photographs:
    """A datatype of large values, of which two are decoded at the same time, or none; it fails if it is set to."""

    def __init__(self, together: int, fails: Callable[[int], BaseException | None] = lambda _: None) -> None:
        self._together, self._fails = threading.Barrier(together), fails
        self.threads: set[int] = set()

    def decode(self, value: bytes) -> Any:
        number = int.from_bytes(value[:2], "big")
        self._together.wait(30)
        self.threads.add(threading.get_ident())
        error = self._fails(number)
        if error is not None:
            raise error
        return number


def photographs(rows: int) -> list[Row]:
    return [row(n, n.to_bytes(2, "big") + bytes(LARGE_BYTES)) for n in range(rows)]


def test_large_values_are_decoded_by_several_threads_while_others_are_preprocessed() -> None:
    """In the rows' order; one that is broken is dead, with its stage."""
    stored = Photographs(2, lambda n: ValueError() if n == 5 else None)
    live = live_of(ObjectModel("f", len), stored, ModelThreads(decoders=Decoders(2)))
    ready = prepare(judged(live, *photographs(20)))
    assert [each.args for each in ready.inputs] == [(n,) for n in range(20) if n != 5]
    assert [(dead.key, dead.stage) for dead in ready.letters] == [(5, "decode")]
    assert len(stored.threads) == 2
    assert threading.get_ident() not in stored.threads


def test_what_several_threads_have_no_memory_for_one_decodes() -> None:
    """From then on the caller decodes, one row after the other; rows are left only if that does not help."""
    failed: list[int] = []
    stored = Photographs(1, lambda n: MemoryError() if n == 7 and not failed and not failed.append(n) else None)
    threads = ModelThreads(decoders=Decoders(2))
    ready = prepare(judged(live_of(ObjectModel("f", len), stored, threads), *photographs(20)))
    assert [each.args for each in ready.inputs] == [(n,) for n in range(20)]
    assert threading.get_ident() in stored.threads

    told: list[int] = []
    stored = Photographs(1, lambda n: MemoryError() if n >= 7 else None)
    live = live_of(ObjectModel("f", len), stored, threads)
    ready = prepare(judged(live, *photographs(20)), out_of_memory=told.append)
    assert (told, len(ready.rows), len(ready.left), ready.letters) == ([8], 3, 17, ())


def live_of(model: Any, stored: Any, threads: ModelThreads | None = None) -> Live:
    return Live(model, 7, GENERATION, Key.parse("x"), (stored,), threads or ModelThreads())


# ---- odd errors -----------------------------------------------------------------------------------------------------


class Unprintable(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError("no text today")


class Wordless(Exception):
    """Its text is no text."""

    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # noqa: PLE0307


class OwnBase(BaseException):
    """As some libraries' signals of the end."""


ODD = [
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    GeneratorExit(),
    OwnBase("ended"),
    StopIteration(7),
    RecursionError("deep"),
    Unprintable(),
    Wordless(),
    ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    ValueError("\ud800 alone"),
    ValueError("nul \x00 in it"),
    ValueError("x" * 100_000),
    ValueError(b"bytes", object()),
]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["preprocess", "object", "postprocess"])
def test_whatever_the_users_code_raises_costs_its_row_alone(error: BaseException, step: str) -> None:
    """No error of a row ends a stage, and its letter can be stored: valid text, of bounded length."""

    def fails_on_two(x: Any) -> Any:
        if x == 2:
            raise error
        return x

    steps: dict[str, Any] = {"object": lambda x: x} | {step: fails_on_two}
    try:
        predicted = outcome(live(ObjectModel("f", **steps)), row(1, 1), row(2, 2), row(3, 3))
    except BaseException as escaped:
        pytest.fail(f"{escaped!r:.200} came out of the step and would have ended the worker")
    assert values(predicted) == {1: 1, 2: type(error).__name__, 3: 3}
    (dead,) = predicted.letters
    assert len(dead.message.encode().decode()) <= LONGEST_MESSAGE
    assert dead.traceback.encode()
    assert len(dead.traceback) <= LONGEST_TRACEBACK
    assert "fails_on_two" in dead.traceback or len(dead.traceback) == LONGEST_TRACEBACK


def test_the_end_of_a_long_traceback_is_kept() -> None:
    """It is where the error stands."""

    def model(_: Any) -> Any:
        cause: Exception | None = None
        for n in range(100):
            try:
                raise ValueError(f"link {n} " + "y" * 300) from cause
            except ValueError as error:
                cause = error
        raise RuntimeError("the last link") from cause

    (dead,) = outcome(live(model), row(1, 1)).letters
    assert len(dead.traceback) == LONGEST_TRACEBACK
    assert dead.traceback.endswith("RuntimeError: the last link\n")


NESTED: Any = 0
for _ in range(300):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "output",
    [
        float("nan"),
        [1.0, float("inf")],
        {"a": {"b": float("-inf")}},
        2**70,
        object(),
        {1: "a key that is no string"},
        {"nul\x00": 1},
        "\ud800",
        {"\ud800": 1},
        iter(()),
        NESTED,
        lambda: None,
    ],
    ids=shown,
)
def test_an_output_that_cannot_be_stored_costs_its_row_alone(output: Any) -> None:
    """The reason says what is wrong with it."""
    predicted = outcome(live(lambda x: output if x == 2 else x), row(1, 1), row(2, 2), row(3, 3))
    assert values(predicted) == {1: 1, 2: "OutputError", 3: 3}
    assert predicted.letters[0].message


def test_an_output_that_is_too_large_costs_its_row_alone() -> None:
    """A row holds 16 MB, its input included; the reason says the size."""
    predicted = outcome(live(lambda x: "y" * x), row(1, 1), row(2, LARGEST_OUTPUT + 1), row(3, LARGEST_OUTPUT - 100))
    assert {key: len(value) for key, value in values(predicted).items()} == {
        1: 1,
        2: len("OutputError"),
        3: LARGEST_OUTPUT - 100,
    }
    (dead,) = predicted.letters
    assert dead.stage == "store"
    assert "bytes" in dead.message


@pytest.mark.parametrize(
    "output", [None, True, 0, -1.5, "", "text", b"bytes", [], {}, [[1, 2], [3]], {"a": None}], ids=repr
)
def test_plain_outputs_are_stored_as_they_are(output: Any) -> None:
    """None is an output too."""
    assert values(outcome(live(lambda _: output), row(1, 1))) == {1: output}


def test_a_dead_row_is_marked_by_the_same_kind_of_write() -> None:
    """With its reason in place of a value, so that no restart predicts it again."""
    seen = Seen(BEFORE, GENERATION, b"of something else", present=True)

    def model(_: Any) -> Any:
        raise OutputError("not today")

    (write,) = outcome(live(model), row(1, "a", seen=seen)).writes
    assert (write.kind, write.seen, write.asof) == ("set", seen, AT)
    assert write.output == {
        "error": {"type": "OutputError", "message": "not today", "stage": "predict"},
        "model": "f",
        "version": 7,
        "generation": 3,
        "asof": AT,
        "input": b"hash of ('a',)",
    }
