"""Kills a training in this process, and compares what two trainings end with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from components.torch import Trained, weights


class Killed(BaseException):
    """Stands for a SIGKILL: nobody catches it, nothing is saved on the way out."""


def killed_at(call: int) -> Callable[[], None]:
    """Return a `stopped` that kills at its n-th call."""
    calls = iter(range(10**9))

    def stopped() -> None:
        if next(calls) == call:
            raise Killed

    return stopped


def outcome(result: Trained) -> tuple[Any, ...]:
    """Return all that must be the same."""
    return (
        weights.content_hash(result.state),
        result.metric_values,
        result.metric_steps,
        result.best_step,
        result.step,
    )
