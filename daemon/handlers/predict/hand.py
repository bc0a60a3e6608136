"""Where a model's code is called: in the thread of the caller (`Hand`), or in a thread or processes of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from daemon.handlers.predict.interpreter_turn import Turn

P = ParamSpec("P")
T = TypeVar("T")


class Hand:
    """Calls functions in the thread of the caller."""

    number = 1
    """So many calls run at the same time."""

    def __init__(self) -> None:
        self.turn = Turn()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, or raise what it raises."""
        return function(*args, **kwargs)

    def each(self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
        """Return the results of calls with these arguments, at most `number` of them; raises as `run` does."""
        return [self.run(function, *args) for args in calls]
