"""A model with `preprocess_processes` gives every row what it gives without; what cannot be passed costs its row."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from bson import Binary, Decimal128, ObjectId
from bson.timestamp import Timestamp
from harness import preprocess_models as models
from harness.processes import alive

from components import ObjectModel
from components.datatypes import datatype
from components.errors import Retry
from components.key import Key
from components.model import Model
from components.torch import TorchModel, batches
from daemon.handlers.predict import messages
from daemon.handlers.predict.decoding import Decoders
from daemon.handlers.predict.dirty_keys import Batch
from daemon.handlers.predict.failures import is_transient
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.messages import NotPassed
from daemon.handlers.predict.model_threads import ModelThreads
from daemon.handlers.predict.processes import FORKED, Processes
from daemon.handlers.predict.records import Row, Seen
from daemon.handlers.predict.stages import Judged, Predicted, predict, prepare

AT = Timestamp(100, 1)
SECONDS = 30.0
pytestmark = pytest.mark.filterwarnings(  # the loop of a model's thread is closed when it is collected
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """Every process has ended once its model is gone."""
    yield
    gc.collect()
    end = time.monotonic() + SECONDS
    while (left := _forks()) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert not left
    assert not FORKED


def _forks() -> list[int]:
    return [each.pid for each in psutil.Process().children() if each.name() == "preprocess" and alive(each.pid)]


def live(model: Model, kind: str | None = "str", decoders: Decoders | None = None) -> Live:
    """The model as a worker has it, with processes if it asks for them."""
    threads = replace(ModelThreads.own("m"), decoders=decoders).loaded(model)
    return Live(model, 7, 3, Key.parse("x"), (datatype(kind) if kind else None,), threads)


def predicted(of: Live, *values: Any, room: float = float("inf")) -> tuple[Predicted, list[int]]:
    """What becomes of rows 0, 1... with these values; the rows for which there was no room."""
    rows = tuple(Row(n, (value,), f"hash of {n}".encode(), Seen()) for n, value in enumerate(values))
    prepared = prepare(Judged(Batch(()), AT, of, rows, (), frozenset()), room=room)
    return predict(prepared, lambda _: None), [row.key for row in prepared.left]


def outputs(found: Predicted) -> dict[Any, Any]:
    """Of each row its value, or its error."""
    written = {write.key: write.output or {} for write in found.writes}
    return {key: out["value"] if "value" in out else out["error"] for key, out in written.items()}


TEXTS = [*("a" * n for n in range(1, 60)), "bad", *("b" * n for n in range(60, 90)), "bad", None, 7, "c"]
KINDS: dict[str, Callable[[int], Model]] = {
    "per-row": lambda n: TorchModel("m", models.Net(), models.length, models.named, preprocess_processes=n),
    "async": lambda n: TorchModel("m", models.Net(), models.slept, models.named, preprocess_processes=n),
    "batched": lambda n: TorchModel(
        "m", models.Net(), postprocess=models.named, preprocess_batch=models.lengths, preprocess_processes=n
    ),
    "padded": lambda n: TorchModel(
        "m", models.Net(), postprocess=models.named, preprocess_batch=models.padded, preprocess_processes=n
    ),
    "parts": lambda n: TorchModel(
        "m", models.Net(), postprocess=models.named, preprocess_batch=models.parted, preprocess_processes=n
    ),
    "function": lambda n: ObjectModel(
        "m", lambda x: [x[0], x[1], os.getpid()], models.length, lambda x: models.named(torch.tensor(x)),
        preprocess_processes=n,
    ),
    "batched function": lambda n: ObjectModel(
        "m", lambda xs: [[*x.tolist(), os.getpid()] for x in xs], models.length,
        lambda x: models.named(torch.tensor(x)), batched=True, preprocess_processes=n,
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_get_what_they_get_in_one_process(kind: str, number: int) -> None:
    """Values, kinds of errors, messages and stages; `preprocess` runs in other processes, the model in this one."""
    apart = live(KINDS[kind](number))
    here = live(KINDS[kind](0))
    assert isinstance(apart.threads.preprocess, Processes) != isinstance(here.threads.preprocess, Processes)
    for _ in range(2):
        expected, _ = predicted(here, *TEXTS)
        found, _ = predicted(apart, *TEXTS)
        plain = {key: value.get("length", value) for key, value in outputs(expected).items()}
        assert {key: value.get("length", value) for key, value in outputs(found).items()} == plain
        good = [value for value in outputs(found).values() if "prepared" in value]
        assert {value["predicted"] for value in good} == {os.getpid()}
        assert {value["prepared"] for value in good} <= FORKED
        shown = [(letter.key, letter.input, letter.stage, letter.type, letter.cause) for letter in found.letters]
        assert sorted(shown) == sorted(
            (letter.key, letter.input, letter.stage, letter.type, letter.cause) for letter in expected.letters
        )
        assert {letter.stage for letter in found.letters} == {"decode", "preprocess"}
        assert all("in length" in letter.traceback for letter in found.letters if letter.type == "ValueError")
    if number > 1 and kind in {"per-row", "async", "function", "batched function"}:
        good = [value for value in outputs(predicted(apart, *"abcdefgh" * 12)[0]).values() if "prepared" in value]
        assert {value["prepared"] for value in good} == FORKED, "not all of them were used"


@pytest.mark.parametrize("number", [1, 2])
def test_rows_for_which_there_is_no_room_are_left(number: int) -> None:
    """They are no row's fault, and none is lost."""
    of = live(KINDS["per-row"](number))
    found, left = predicted(of, *("a" * n for n in range(64)), room=16.0 * 20)
    assert left
    assert sorted([*outputs(found), *left]) == list(range(64))
    assert all(value["length"] == key for key, value in outputs(found).items())


@pytest.mark.parametrize("kind", ["per-row", "function"])
@pytest.mark.parametrize("number", [1, 2])
def test_what_cannot_be_passed_costs_its_row(kind: str, number: int) -> None:
    """The reason is in its letter, with what to do; the others have their outputs."""
    of = live(KINDS[kind](number))
    found, _ = predicted(of, *("a" * n for n in range(40)), "function", "picky", "bb")
    assert [(letter.key, letter.type) for letter in found.letters] == [(40, "NotPassed"), (41, "Picky")]
    assert "`preprocess_processes`" in found.letters[0].message
    assert found.letters[1].message == "one and two"
    lengths = {key: value["length"] for key, value in outputs(found).items() if "length" in value}
    assert lengths == {**{n: n for n in range(40)}, 42: 2}


VALUES = [
    torch.arange(12).reshape(3, 4).t(),
    torch.tensor(2.5),
    torch.zeros(0, 3),
    torch.ones(300, 300, dtype=torch.bfloat16),
    torch.ones(400, 400),
    torch.ones(3, requires_grad=True) * 2,
    torch.ones(2, 2).to_sparse(),
    np.arange(100_000.0).reshape(100, 1000)[:, ::2],
    np.array([1, "a", None], dtype=object),
    {"ids": torch.arange(3), "text": "x", "more": (1, [2.5, None])},
    torch.ones(70_000)[5:],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__} {getattr(value, 'shape', '')}")
def test_a_value_passes_as_it_is_and_can_be_written(value: Any) -> None:
    """Large and small, on either side of the size from which memory travels beside the pickle."""
    [passed] = [messages.opened(_copied(messages.packed(value)))]
    if isinstance(value, dict):
        assert passed["text"] == "x"
        assert torch.equal(passed["ids"], value["ids"])
    elif isinstance(value, torch.Tensor):
        assert (passed.dtype, passed.shape) == (value.dtype, value.shape)
        assert torch.equal(passed.to_dense(), value.detach().to_dense())
        if not value.is_sparse:
            passed.detach().fill_(1)
    else:
        assert (passed.dtype, passed.tolist()) == (value.dtype, value.tolist())
        passed[...] = 0


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_a_sparse_tensor_passes_and_is_not_kept(layout: str) -> None:
    """Torch keeps those that it unpickles itself, and so a worker would grow with every batch."""
    blocks = {"blocksize": (2, 2)} if layout.startswith("bs") else {}
    value = torch.eye(400).to_sparse(layout=getattr(torch, f"sparse_{layout}"), **blocks)
    value = torch.cat([value, value], dim=1) if layout == "coo" else value
    passed = messages.opened(_copied(messages.packed(value)))
    assert (passed.layout, passed.dtype, passed.shape) == (value.layout, value.dtype, value.shape)
    assert torch.equal(passed.to_dense(), value.to_dense())
    there = weakref.ref(passed)
    del passed
    gc.collect()
    assert there() is None


def test_a_sparse_tensor_that_is_not_coalesced_stays_so() -> None:
    """Its public parts cannot be had."""
    value = torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,), check_invariants=True)
    passed = messages.opened(_copied(messages.packed(value)))
    assert (passed.is_coalesced(), passed.to_dense().tolist()) == (False, [3.0, 0.0, 0.0])


def _copied(message: list[Any]) -> list[Any]:
    return [bytes(message[0]), *(bytearray(each) for each in message[1:])]


@pytest.mark.parametrize("value", [Binary(b"x", 5), Decimal128("1.5"), ObjectId(), {"a": [1, {"b": None}]}])
def test_stored_values_of_any_kind_reach_the_preprocess(value: Any) -> None:
    """As the driver decodes them."""
    of = live(ObjectModel("m", lambda x: x, repr, preprocess_processes=1), None)
    assert outputs(predicted(of, value)[0]) == {0: repr(value)}


def test_errors_are_raised_as_they_were_with_where() -> None:
    """One that can be unpickled is itself, so that `Retry` and `except` know it."""
    hand = live(KINDS["per-row"](1)).threads.preprocess
    with pytest.raises(ValueError, match="invalid literal") as raised:
        hand.run(int, "x")
    assert "Traceback" in str(raised.value.__cause__)
    with pytest.raises(Retry):
        hand.run(_raises, Retry("later"))
    assert not is_transient(raised.value)
    with pytest.raises(ValueError, match="no answer") as because:
        hand.run(_raises_because_of_a_connection)
    assert is_transient(because.value)
    with pytest.raises(RuntimeError, match="one and two") as other:
        hand.run(_raises_picky)
    assert type(other.value).__name__ == "Picky"
    with pytest.raises(NotPassed):
        hand.run(lambda: None)
    assert hand.run(len, "abc") == 3, "it no longer answers"


def _raises(error: BaseException) -> None:
    raise error


def _raises_because_of_a_connection() -> None:
    raise ValueError("no answer") from ConnectionError()


def _raises_picky() -> None:
    raise models.Picky("one", "two")


def test_calls_from_several_threads_get_their_own_answers() -> None:
    """As of two listeners with one model, and of a search."""
    hand = live(KINDS["per-row"](2)).threads.preprocess
    wrong: list[Any] = []

    def calls(of: int) -> None:
        for n in range(50):
            found = hand.each(divmod, [(of * 1000 + n, 7), (n, 3)])
            if found != [divmod(of * 1000 + n, 7), divmod(n, 3)]:
                wrong.append(found)

    threads = [threading.Thread(target=calls, args=(of,)) for of in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_processes_that_have_ended_are_reaped() -> None:
    """Once the model is gone."""
    hand = live(KINDS["per-row"](3)).threads.preprocess
    assert hand.run(len, "abc") == 3
    pids = set(FORKED)
    assert len(pids) == 3
    del hand
    gc.collect()
    end = time.monotonic() + SECONDS
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < end, "a zombie is left"
        time.sleep(0.01)


def test_an_answer_that_is_not_taken_is_not_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """If memory runs out while an answer is read, another process takes its place."""
    hand = live(KINDS["per-row"](1)).threads.preprocess
    assert hand.run(len, "abc") == 3
    before = set(FORKED)

    received, here = messages.receive, os.getpid()

    def fails(pipe: Any) -> Any:
        if os.getpid() == here:
            raise MemoryError
        return received(pipe)

    with monkeypatch.context() as patch:
        patch.setattr(messages, "receive", fails)
        with pytest.raises(MemoryError):
            hand.run(len, "abcd")
    assert hand.run(len, "ab") == 2
    gc.collect()
    assert not before & FORKED


def test_if_memory_runs_out_between_the_processes_rows_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come again in smaller batches; a row that fails alone gets a letter that brings another attempt."""
    of = live(KINDS["per-row"](1))

    def fails(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(of.threads.preprocess, "each", fails)
    halved: list[int] = []
    rows = tuple(Row(n, ("a",), b"", Seen()) for n in range(40))
    prepared = prepare(Judged(Batch(()), AT, of, rows, (), frozenset()), out_of_memory=halved.append)
    assert ([row.key for row in prepared.left], prepared.rows, halved) == (list(range(40)), (), [40])
    prepared = prepare(Judged(Batch(()), AT, of, rows[:1], (), frozenset()))
    assert [(letter.key, letter.type, letter.cause) for letter in prepared.letters] == [(0, "MemoryError", "transient")]


def test_a_fork_that_ends_while_it_has_nothing_to_do_ends_this_process_at_once() -> None:
    """Not with the next batch, whose rows would be suspected."""
    script = DIES.format(tests=str(Path(__file__).parents[1]), function="os.getpid")
    script += "os.kill(max(FORKED), signal.SIGKILL)\nimport time\ntime.sleep(60)"
    began = time.monotonic()
    ran = _ran(script)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert time.monotonic() - began < 50


COLLATED = [
    [torch.ones(3), torch.zeros(3)],
    [(torch.ones(2), "a"), (torch.zeros(2), "b")],
    [{"x": torch.ones(2), "more": [1, 2], "text": "a"}, {"x": torch.zeros(2), "more": [3, 4], "text": "b"}],
    [[1.0, 2.0], [3.0, 4.0]],
    [np.ones(2), np.zeros(2)],
    [1, 2],
    [{"deep": (torch.ones(1), {"b": b"1"})}, {"deep": (torch.zeros(1), {"b": b"2"})}],
]


@pytest.mark.parametrize("rows", COLLATED, ids=repr)
@pytest.mark.parametrize("counts", [(2, 2), (1, 2), (2, 1, 3)])
def test_parts_of_a_batch_are_put_together_as_the_whole_would_be(rows: list[Any], counts: tuple[int, ...]) -> None:
    """Also if a list of columns has as many items as there are rows."""
    parts = [[rows[(n + at) % 2] for at in range(count)] for n, count in enumerate(counts)]
    whole = batches.collate([row for part in parts for row in part])
    found = batches.joined([batches.collate(part) for part in parts])
    assert repr(found) == repr(whole)


@pytest.mark.parametrize(
    "parts",
    [
        [torch.ones(2, 3), torch.ones(2, 4)],
        [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64)],
        [torch.ones(2), None],
        [{"a": torch.ones(2)}, {"b": torch.ones(2)}],
        [(torch.ones(2), 5), (torch.ones(2), 5)],
    ],
)
def test_parts_that_form_no_batch_are_not_put_together(parts: list[Any]) -> None:
    """What is made of all their rows says why."""
    assert batches.joined(parts) is None


def test_an_event_loop_of_this_process_goes_on() -> None:
    """A fork that closed its copy of a loop would take the descriptors out of this one's, which then never wakes."""
    model = ObjectModel("m", _in_thread, models.slept, lambda x: x, preprocess_processes=2)
    threads = ModelThreads.own("m")
    assert threads.model.run(lambda: model.infer([torch.ones(2)])) == [2]
    of = Live(model, 1, 1, Key.parse("x"), (datatype("str"),), threads.loaded(model))
    assert outputs(predicted(of, "a", "b")[0]) == {0: 2, 1: 2}


async def _in_thread(x: torch.Tensor) -> int:
    """Another thread wakes the loop."""
    return await asyncio.wait_for(asyncio.to_thread(len, x), SECONDS)


def test_each_process_draws_random_numbers_of_its_own() -> None:
    """And not those that this process draws next."""
    of = live(ObjectModel("m", lambda x: x, models.drawn, preprocess_processes=2))
    found = [outputs(predicted(of, *"abcdefgh" * 5)[0])[n] for n in (0, 39)]
    for numbers in zip(*found, models.drawn(""), strict=True):
        assert len(set(numbers)) == 3


def test_a_setting_that_a_row_changes_is_put_back_after_its_batch() -> None:
    """As in the worker itself."""
    of = live(ObjectModel("m", lambda x: x, models.narrow, preprocess_processes=1))
    assert outputs(predicted(of, "change", "x")[0]) == {0: "torch.float32", 1: "torch.float64"}
    assert outputs(predicted(of, "x")[0]) == {0: "torch.float32"}


DIES = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from harness import preprocess_models as models
from components.torch import TorchModel, batches
from daemon.handlers.predict.model_threads import ModelThreads
from daemon.handlers.predict.processes import FORKED
model = TorchModel("m", models.Net(), models.length, preprocess_processes=2)
hand = ModelThreads.own("m").loaded(model).preprocess
print(hand.run(len, "abc"), flush=True)
hand.run({function})
print("it goes on", flush=True)
"""


def _ran(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("os._exit, 3", 3),
        ("os._exit, 0", 1),
        ("os.kill, min(FORKED), signal.SIGKILL", -signal.SIGKILL),
        ("signal.raise_signal, signal.SIGSEGV", -signal.SIGSEGV),
        ("os.abort,", -signal.SIGABRT),
    ],
)
def test_this_process_ends_as_its_fork_does(function: str, code: int) -> None:
    """So whoever looks for the row that did this sees the same as without the fork."""
    ran = _ran(DIES.format(tests=str(Path(__file__).parents[1]), function=function))
    assert ran.returncode == code, ran.stderr
    assert ran.stdout.startswith("3\n")
    assert "it goes on" not in ran.stdout


def test_a_fork_ends_with_its_parent_whatever_ends_it() -> None:
    """The pipe is closed."""
    script = DIES.format(tests=str(Path(__file__).parents[1]), function="os.getpid")
    script += "print(*FORKED, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    ran = _ran(script)
    pids = list(map(int, ran.stdout.splitlines()[-1].split()))
    assert len(pids) == 2
    end = time.monotonic() + SECONDS
    while any(map(alive, pids)):
        assert time.monotonic() < end, "a fork outlives its parent"
        time.sleep(0.05)
