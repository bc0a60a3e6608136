"""What one stage hands to the next belongs to nobody else: buffers that are used again, and work in place."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bson.timestamp import Timestamp
from PIL import Image

from components.key import Key
from components.model import Model, ObjectModel
from components.shared_memory import Watch, copied
from components.torch import TorchModel
from daemon.handlers.predict.dirty_keys import Batch, DirtyKey
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.records import Row, Seen
from daemon.handlers.predict.stages import Judged, Prepared, predict, prepare

AT = Timestamp(100, 1)


def prepared(model: Model, xs: list[Any], first: int = 0) -> Prepared:
    live = Live(model, 1, 1, Key.parse("x"), (None,))
    rows = tuple(Row(first + n, (x,), b"", Seen()) for n, x in enumerate(xs))
    return prepare(Judged(Batch(tuple(DirtyKey(row.key, "live") for row in rows)), AT, live, rows, (), frozenset()))


def values(*batches: Prepared) -> list[Any]:
    """The outputs of batches that were all prepared before the first is predicted, as the pipeline may do."""
    outputs = [write.output or {} for batch in batches for write in predict(batch, lambda _: None).writes]
    return [output["value"] if "value" in output else output["error"]["type"] for output in outputs]


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1


def refilled(kind: str) -> Any:
    """A preprocess that fills the same buffer for each row."""
    tensor, array, image = torch.zeros(1), np.zeros((1, 1), "float32"), {"x": torch.zeros(1)}

    def fill(x: float) -> Any:
        tensor[0], array[0, 0] = x, x
        image["x"] = torch.full((1,), float(x))
        return {"tensor": tensor, "view": tensor[:], "array": array[0], "dict": image}[kind]

    return fill


@dataclass
class Features:
    """A row's features, as a preprocess may return them."""

    values: np.ndarray[Any, Any]


class Sample:
    """A row's features, in a class of somebody's own."""

    def __init__(self, values: Any) -> None:
        self.values = values


class Slotted:
    """Another such class."""

    __slots__ = ("values",)

    def __init__(self, values: Any) -> None:
        self.values = values


def kept(kind: str) -> Any:
    """A preprocess that returns memory of its own in another guise; forty buffers in turn; or what it has cached."""
    array, memory, calls = np.zeros(1), bytearray(8), iter(range(10_000))
    ring, cache = [np.zeros(1) for _ in range(40)], {float(n): np.array([float(n)]) for n in range(300)}

    def preprocess(x: float) -> Any:
        array[0] = x
        memory[:] = array.tobytes()
        turn = ring[next(calls) % len(ring)]
        turn[0] = x
        made: dict[str, Callable[[], Any]] = {
            "dataclass": lambda: Features(array),
            "memoryview": lambda: memoryview(memory),
            "ring": lambda: turn,
            "cache": lambda: cache[x % 45],
            "object": lambda: Sample(array[:]),
            "slots": lambda: Slotted(array),
            "list of an object": lambda: Sample([array]),
            "namespace": lambda: SimpleNamespace(values=torch.from_numpy(array)),
            "table": lambda: pd.DataFrame(array.reshape(1, 1), copy=False),
            "array of objects": lambda: np.array([None, array], dtype=object)[1:],
        }
        return made[kind]()

    return preprocess


def read(prepared_: Any) -> float:
    """The number in it, which is then changed in place, if it can be."""
    held = getattr(prepared_, "values", prepared_)
    held = held[0] if isinstance(held, list) or str(getattr(held, "dtype", "")) == "object" else held
    values = np.frombuffer(np.ravel(np.asarray(held)))
    found = float(values[0])
    if values.flags.writeable:
        values += 1000
    return found


GUISES = ["dataclass", "memoryview", "ring", "cache", "object", "slots", "list of an object", "namespace", "table"]


@pytest.mark.parametrize("kind", [*GUISES, "array of objects"])
def test_memory_that_is_used_again_in_another_guise(kind: str) -> None:
    """In an object, as a view, many in turn, or one for each value, which the model then changes."""
    model = ObjectModel("m", lambda xs: [read(x) for x in xs], preprocess=kept(kind), batched=True)
    xs = [float(n) for n in range(480)]  # the first 300 are copied, whatever they are
    batches = [prepared(model, xs[n : n + 8], n) for n in range(0, 480, 8)]
    assert values(*batches) == [x % 45 if kind == "cache" else x for x in xs]


NUMBERS, BYTES, ITEMS = np.zeros(1), bytearray(8), [0.0]
DOUBLES = (ctypes.c_double * 1)()


class Reader:
    """Reads memory of its own, when it is asked."""

    held = NUMBERS

    def __init__(self) -> None:
        self.values = NUMBERS

    def first(self) -> Any:
        return self.values[0]


def first_of(values: Any, place: int = 0) -> Any:
    return values[place]


def reading(values: Any) -> Callable[[], Any]:
    return lambda: values[0]


READERS: dict[str, Callable[[], Any]] = {
    "lambda with a global": lambda: lambda: NUMBERS[0],
    "lambda with a list": lambda: lambda: ITEMS[0],
    "lambda with a closure": lambda: reading(NUMBERS),
    "lambda with a default": lambda: lambda held=NUMBERS: held[0],
    "partial": lambda: partial(first_of, NUMBERS),
    "partial of a lambda": lambda: partial(lambda place: NUMBERS[place], place=0),
    "method": lambda: Reader().first,
    "method of an array": lambda: NUMBERS.sum,
    "method of a list": lambda: partial(ITEMS.__getitem__, 0),
    "function in an object": lambda: SimpleNamespace(read=[lambda: NUMBERS[0]]),
    "function in a dictionary": lambda: {"read": lambda: NUMBERS[0]},
    "iterator of an array": lambda: iter(NUMBERS),
    "map": lambda: map(float, NUMBERS),
    "slice of a list": lambda: itertools.islice(ITEMS, 1),
    "values of a dictionary": {"held": NUMBERS}.values,
    "ctypes array": lambda: DOUBLES,
    "ctypes view": lambda: (ctypes.c_double * 1).from_buffer(BYTES),
    "array of a ctypes array": lambda: np.ctypeslib.as_array(DOUBLES),
    "view of bytes": lambda: torch.frombuffer(BYTES, dtype=torch.float64),
    "generator": lambda: (number for number in NUMBERS),
    "ctypes pointer": lambda: ctypes.cast(DOUBLES, ctypes.POINTER(ctypes.c_double)),
    "flat iterator": lambda: NUMBERS.flat,
    "enumeration of an array": lambda: map(itemgetter(1), np.ndenumerate(NUMBERS)),
    "nditer": lambda: np.nditer(NUMBERS),
    "broadcast": lambda: np.broadcast(NUMBERS, NUMBERS),
    "generator in an object": lambda: SimpleNamespace(read=[(number for number in NUMBERS)]),
    "nditer in an object": lambda: SimpleNamespace(read=[np.nditer(NUMBERS)]),
    "memoryview in an object": lambda: SimpleNamespace(read=[memoryview(BYTES).cast("d")]),
    "pointer in an object": lambda: SimpleNamespace(read=[ctypes.cast(DOUBLES, ctypes.POINTER(ctypes.c_double))]),
}
UNCOPYABLE = ["generator", "ctypes pointer", "enumeration of an array", "nditer", "broadcast"]
UNCOPYABLE += ["generator in an object", "nditer in an object", "pointer in an object"]


def asked(value: Any) -> float:
    """The number that it reads now."""
    if isinstance(value, (SimpleNamespace, dict)):
        value = value["read"] if isinstance(value, dict) else value.read[0]
    if callable(value):
        value = [value()]
    found = value[0] if hasattr(value, "__getitem__") else next(iter(value))
    return float(found[0] if isinstance(found, np.ndarray) else found)


@pytest.mark.parametrize("kind", READERS)
def test_memory_that_is_read_only_when_the_model_asks(kind: str) -> None:
    """By a function, an iterator or a view of ctypes: each row has its own, or a letter that says what to return."""

    def preprocess(x: float) -> Any:
        NUMBERS[0] = ITEMS[0] = DOUBLES[0] = x
        BYTES[:] = NUMBERS.tobytes()
        return READERS[kind]()

    model = ObjectModel("m", asked, preprocess=preprocess)
    batches = [prepared(model, [float(10 * b + n) for n in range(3)], 10 * b) for b in range(3)]
    expected = [float(10 * b + n) for b in range(3) for n in range(3)]
    assert values(*batches) == (["RowError"] * 9 if kind in UNCOPYABLE else expected)


def test_functions_that_hold_nothing_or_each_other_pass_as_they_are() -> None:
    """A generator of plain values, a function of a module, functions that call each other."""

    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    watch, plain = Watch(300), (n for n in range(3))
    assert watch.own(plain) is plain
    assert watch.own(len) is len
    assert watch.own(first_of)([7.0]) == 7.0
    assert watch.own(even)(4)
    assert watch.own(torch.relu) is torch.relu
    scalars = [np.int64(n) for n in range(9)]
    assert [watch.own(each) for each in scalars] == scalars
    assert not watch.shares


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("kind", ["tensor", "view", "array", "dict"])
def test_a_preprocess_that_fills_one_buffer_again(kind: str, size: int) -> None:
    """In one batch, and over batches of one row; in the daemon and in this process."""
    model = TorchModel("m", Named(), preprocess=refilled(kind), postprocess=lambda o: o.item())
    batches = [prepared(model, [float(10 * b + n) for n in range(size)], 10 * b) for b in range(5)]
    assert values(*batches) == [float(10 * b + n) for b in range(5) for n in range(size)]
    again = TorchModel("m", Named(), preprocess=refilled(kind), postprocess=lambda o: o.item())
    assert again.predict_batches([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("ring", [1, 2])
def test_a_preprocess_batch_that_fills_its_buffers_again(ring: int) -> None:
    """While the batches before are still to be predicted; larger batches get a larger buffer."""
    buffers: dict[int, list[torch.Tensor]] = {}
    calls = iter(range(1000))

    def fill(xs: list[float]) -> torch.Tensor:
        kept = buffers.setdefault(len(xs), [torch.zeros(len(xs), 1) for _ in range(ring)])
        buffer = kept[next(calls) % ring]
        buffer[:, 0] = torch.tensor(xs)
        return buffer

    model = TorchModel("m", Identity(), preprocess_batch=fill, postprocess=lambda o: o.item())
    for size in (1, 2, 8, 16):
        batches = [prepared(model, [float(100 * b + n) for n in range(size)], 100 * b) for b in range(4)]
        assert values(*batches) == [float(100 * b + n) for b in range(4) for n in range(size)]


class InPlace(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        if (x == 4).any():
            raise ValueError("bad row")
        return x


def test_a_model_that_works_in_place_is_asked_again_with_fresh_inputs() -> None:
    """One bad row must not change what its neighbours get."""
    many = TorchModel(
        "m", InPlace(), preprocess_batch=lambda xs: torch.as_tensor(np.stack(xs)), postprocess=lambda o: o.item()
    )
    xs = [np.array([float(n)]) for n in range(8)]
    expected = [n + 1.0 if n != 3 else "ValueError" for n in range(8)]
    assert sorted(map(str, values(prepared(many, xs)))) == sorted(map(str, expected))

    def add(rows: list[Any]) -> list[Any]:
        for each in rows:
            each[0] += 1
        if any(each[0] == 4 for each in rows):
            raise ValueError
        return [each[0] for each in rows]

    for given in ([[n] for n in range(8)], [{0: n} for n in range(8)]):
        found = values(prepared(ObjectModel("m", add, batched=True), given))
        assert sorted(map(str, found)) == sorted(str(n + 1) if n != 3 else "ValueError" for n in range(8))
        assert [each[0] for each in given] == list(range(8))


def test_an_output_buffer_that_is_written_again() -> None:
    """By the next row, by the bisection of a bad batch, and by the next batch of a validation."""
    one = np.zeros(1)

    def fill(x: float) -> np.ndarray[Any, Any]:
        one[0] = x
        return one

    assert values(prepared(ObjectModel("m", fill), [1.0, 2.0, 3.0])) == [[1.0], [2.0], [3.0]]
    assert [float(each[0]) for each in ObjectModel("m", fill).predict_batches([1.0, 2.0, 3.0])] == [1.0, 2.0, 3.0]

    whole = np.zeros((8, 1))

    def some(xs: list[float]) -> np.ndarray[Any, Any]:
        if 3.0 in xs:
            raise ValueError
        whole[: len(xs), 0] = xs
        return whole[: len(xs)]

    found = values(prepared(ObjectModel("m", some, batched=True), [float(n) for n in range(8)]))
    assert sorted(map(str, found)) == sorted(str([float(n)]) if n != 3 else "ValueError" for n in range(8))
    batched = ObjectModel("m", some, batched=True).predict_batches([0.0, 1.0, 2.0, 4.0], batch_size=1)
    assert [float(each[0]) for each in batched] == [0.0, 1.0, 2.0, 4.0]


def test_a_training_gets_each_rows_own_input() -> None:
    """The same buffer for all rows of a batch would teach the last row only."""
    seen: list[list[float]] = []

    class Net(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(sorted(x[:, 0].tolist()))
            return super().forward(x)

    model = TorchModel("m", Net(1, 1), preprocess=refilled("tensor"))
    model.fit([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], objective=lambda o, y: (o[:, 0] - y).square().mean(), max_iterations=3)
    assert seen == [[1.0, 2.0, 3.0]] * 3


def test_good_functions_are_believed_and_pay_nothing() -> None:
    """After the first values of a size, the very objects are handed on."""
    watch = Watch(4)
    kept = [torch.zeros(3) for _ in range(6)]
    assert [watch.own(each) is each for each in kept] == [False] * 4 + [True] * 2
    assert not watch.shares


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_sparse_inputs_are_own_or_believed_too(layout: str) -> None:
    """A tensor whose values are written again is copied; other ones are handed on after the first of a size."""
    options: dict[str, Any] = {"layout": getattr(torch, f"sparse_{layout}")}
    options |= {"blocksize": (1, 1)} if layout.startswith("b") else {}
    dense = [torch.eye(3) * (n + 1) for n in range(6)]
    watch = Watch(4)
    kept = [each.to_sparse(**options) for each in dense]
    assert [watch.own(each) is each for each in kept] == [False] * 4 + [True] * 2
    one, watch = dense[0].to_sparse(**options), Watch(4)
    held = one._values() if layout == "coo" else one.values()
    own = [watch.own(one), (held.mul_(0), watch.own(one))[1]]
    assert watch.shares
    assert torch.equal(own[0].to_dense(), dense[0])
    model = TorchModel(
        "m", Product(), preprocess=lambda x: (torch.eye(2) * x).to_sparse(), postprocess=lambda y: y.sum()
    )
    xs = [float(n) for n in range(40)]
    assert values(prepared(model, xs[:20]), prepared(model, xs[20:])) == [2 * x for x in xs]
    model.fit(xs, xs, objective=lambda o, y: (o.sum((1, 2)) - y).square().mean(), max_iterations=3, folds=0.5)


class Product(torch.nn.Module):
    """A layer for sparse inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.sparse.mm(each, self.weight) for each in x])


def test_a_copy_behaves_like_what_it_is_a_copy_of() -> None:
    """A model must not work in the first batches only: what it asks of its input it finds in the copy too."""
    missing = object()
    assert copied([missing, {"x": missing}]) == [missing, {"x": missing}]
    assert not copied(np.frombuffer(bytes(8))).flags.writeable
    elements = np.arange(6.0).reshape(2, 3).T.flat
    next(elements)
    assert list(copied(elements)) == list(elements)
    assert [copied(memoryview(each)).readonly for each in (bytes(8), bytearray(8))] == [True, False]
    assert copied(torch.ones(2, requires_grad=True)).requires_grad
    file = BytesIO()
    frames = [Image.new("L", (2, 2), level) for level in (0, 255)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert copied(Image.open(file)).n_frames == 2


def test_a_batch_of_tensors_is_made_before_it_is_predicted() -> None:
    """And its rows are not held beside it."""
    batch = prepared(TorchModel("m", Identity(), torch.tensor, float, preferred_devices=["cpu"]), [1.0, 2.0, 3.0])
    assert batch.many.tolist() == [1.0, 2.0, 3.0]
    assert batch.inputs == (None, None, None)
    assert values(batch) == [1.0, 2.0, 3.0]


def test_rows_that_form_no_batch_are_predicted_all_the_same() -> None:
    """Each alone, as those that fail are."""

    def preprocess(x: int) -> torch.Tensor:
        return torch.full((x,), float(x))

    batch = prepared(TorchModel("m", Identity(), preprocess, torch.Tensor.tolist, preferred_devices=["cpu"]), [1, 2, 3])
    assert batch.many is None
    assert values(batch) == [[1.0], [2.0, 2.0], [3.0, 3.0, 3.0]]
