"""Models without torch of which each breaks the contract in one way. Named in declarations as
`harness.faulty_models:...`.
"""

from __future__ import annotations

import os
import random as chance
import signal
import sqlite3
import time
from typing import Any


def raises(x: Any) -> Any:
    raise ValueError("never any")


def unstorable(x: Any) -> Any:
    return object()


def not_a_number(x: Any) -> float:
    return float("nan")


def of_its_batch(xs: list[Any]) -> list[float]:
    return [len(x) - sum(map(len, xs)) / len(xs) for x in xs]


def not_for_two(xs: list[Any]) -> list[Any]:
    if len(xs) == 2:
        raise RuntimeError("two is company")
    return xs


def too_few(xs: list[Any]) -> list[Any]:
    return xs[:-1] if len(xs) > 1 else xs


def exits(x: Any) -> Any:
    os._exit(3)


def crashes(x: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def is_killed(x: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(x: Any) -> Any:
    time.sleep(600)


class Connected:
    """Its connection belongs to the thread that made it."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:")

    def __call__(self, x: Any) -> Any:
        return self._connection.execute("SELECT ?", (x,)).fetchone()[0]

    def before(self, x: Any) -> Any:
        return self(x)


class Signalled(Connected):
    """Can be built in the main thread only."""

    def __init__(self) -> None:
        super().__init__()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


shared = Connected()
shared_before = shared.before


def random(x: Any) -> float:
    return chance.random()


def picky(x: Any) -> Any:
    if x == "x3":
        raise ValueError("three is too many")
    return x


class Missing:
    """Cannot be built where it is served."""

    def __init__(self) -> None:
        import a_package_that_is_not_here  # noqa: F401

    def __call__(self, x: Any) -> Any:
        return x


class Stuck:
    """Its constructor does not return."""

    def __init__(self) -> None:
        time.sleep(600)

    def __call__(self, x: Any) -> Any:
        return x
