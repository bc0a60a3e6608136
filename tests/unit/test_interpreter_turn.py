"""One thread at a time makes many short calls, and nobody waits for long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from bson.timestamp import Timestamp

from components.key import Key
from components.model import ObjectModel
from daemon.handlers.predict import interpreter_turn
from daemon.handlers.predict.dirty_keys import Batch
from daemon.handlers.predict.interpreter_turn import FEWEST_ROWS, Turn
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.records import Row, Seen
from daemon.handlers.predict.stages import Judged, predict, prepare


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing takes too long, however busy the machine is."""
    monkeypatch.setattr(interpreter_turn, "WAIT_SECONDS", 60.0)


def waiting(number: int) -> bool:
    return len(interpreter_turn._LOCK._waiting) == number


def until(done: Callable[[], bool]) -> None:
    for _ in range(60_000):
        if done():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it did not happen")


@pytest.mark.usefixtures("patient")
def test_whoever_waits_is_next_though_the_turn_is_taken_again_at_once() -> None:
    mine, order = Turn(), []

    def other() -> None:
        with Turn().taken(FEWEST_ROWS):
            order.append("other")

    with mine.taken(FEWEST_ROWS):
        thread = in_thread(other)
        until(lambda: waiting(1))
        order.append("mine")
    with mine.taken(FEWEST_ROWS):
        order.append("mine again")
    thread.join(60)
    assert order == ["mine", "other", "mine again"]


def test_nobody_waits_for_code_that_hangs_and_it_gets_no_other_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter_turn, "WAIT_SECONDS", 0.01)
    hanging, let_go, entered = Turn(), threading.Event(), threading.Event()

    def hang() -> None:
        with hanging.taken(FEWEST_ROWS):
            entered.set()
            assert let_go.wait(60)

    thread = in_thread(hang)
    assert entered.wait(60)
    with Turn().taken(FEWEST_ROWS):
        assert thread.is_alive()
    assert waiting(0)
    let_go.set()
    thread.join(60)
    with hanging.taken(FEWEST_ROWS):
        assert not interpreter_turn._LOCK._taken


@pytest.mark.usefixtures("patient")
def test_few_rows_take_no_turn_and_an_error_gives_it_back() -> None:
    with Turn().taken(FEWEST_ROWS - 1):
        assert not interpreter_turn._LOCK._taken
    with suppress(ValueError), Turn().taken(FEWEST_ROWS):
        assert interpreter_turn._LOCK._taken
        raise ValueError
    assert not interpreter_turn._LOCK._taken


@pytest.mark.usefixtures("patient")
def test_rows_are_preprocessed_and_outputs_finished_in_turns_and_models_run_outside() -> None:
    """What the user's functions see of the lock, with as many rows as make a turn worth its wait."""
    seen: dict[str, set[bool]] = {}

    def noted(stage: str) -> Callable[[Any], Any]:
        def step(value: Any) -> Any:
            seen.setdefault(stage, set()).add(interpreter_turn._LOCK._taken)
            return value

        return step

    model = ObjectModel("m", noted("model"), noted("preprocess"), noted("postprocess"), batched=True)
    live = Live(model, 1, 1, Key.parse("x"), (None,))
    rows = tuple(Row(n, (n,), b"", Seen()) for n in range(FEWEST_ROWS))
    ready = prepare(Judged(Batch(()), Timestamp(1, 1), live, rows, (), frozenset()))
    assert predict(ready, lambda _: None).predicted == FEWEST_ROWS
    assert seen == {"preprocess": {True}, "model": {False}, "postprocess": {True}}
