"""Who may run user code in a worker, and that nobody waits for ever."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from daemon.handlers.predict.turnstile import Turnstile

PATIENCE = 30


class Stage:
    """A thread that enters, says so in `order`, and stays until `leave` is set."""

    def __init__(self, turnstile: Turnstile, order: list[str], name: str) -> None:
        self.name, self.inside, self.leave = name, threading.Event(), threading.Event()
        self._turnstile, self._order = turnstile, order
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with self._turnstile.entered(alone=self.name.startswith("alone")):
            self._order.append(self.name)
            self.inside.set()
            self.leave.wait(PATIENCE)


def waits(turnstile: Turnstile, *, alone: int, others: int) -> None:
    """Returns once so many wait."""
    for _ in range(1000 * PATIENCE):
        if (turnstile._waiting, turnstile._others) == (alone, others):
            return
        threading.Event().wait(0.001)
    raise AssertionError("nobody waits")


def test_others_have_their_turn_between_two_that_must_be_alone() -> None:
    """A listener with many suspects does not starve its neighbours in the worker."""
    turnstile, order = Turnstile(), list[str]()
    with ExitStack() as stack:
        first = Stage(turnstile, order, "alone 1")
        stack.callback(first.leave.set)
        assert first.inside.wait(PATIENCE)
        other = Stage(turnstile, order, "other")
        stack.callback(other.leave.set)
        waits(turnstile, alone=0, others=1)
        second = Stage(turnstile, order, "alone 2")
        stack.callback(second.leave.set)
        waits(turnstile, alone=1, others=1)
        first.leave.set()
        assert other.inside.wait(PATIENCE)
        assert not second.inside.is_set()
        other.leave.set()
        assert second.inside.wait(PATIENCE)
    assert order == ["alone 1", "other", "alone 2"]


def test_one_that_must_be_alone_goes_before_those_that_come_later() -> None:
    """Else a busy worker would never try its suspects."""
    turnstile, order = Turnstile(), list[str]()
    with ExitStack() as stack:
        running = Stage(turnstile, order, "other 1")
        stack.callback(running.leave.set)
        assert running.inside.wait(PATIENCE)
        alone = Stage(turnstile, order, "alone")
        stack.callback(alone.leave.set)
        waits(turnstile, alone=1, others=0)
        later = Stage(turnstile, order, "other 2")
        stack.callback(later.leave.set)
        waits(turnstile, alone=1, others=1)
        running.leave.set()
        assert alone.inside.wait(PATIENCE)
        alone.leave.set()
        assert later.inside.wait(PATIENCE)
    assert order == ["other 1", "alone", "other 2"]
