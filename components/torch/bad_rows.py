"""The rows that a training passes over because their preprocess or transform raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from components.errors import TrainingError

NAMED = 20
"""How many rows are named; the others are counted."""


class BadRow(TrainingError):
    """A row of a batch could not be prepared; the batch can be made without it."""

    def __init__(self, place: int, message: str) -> None:
        super().__init__(message)
        self.place = place


class BadRows:
    """The reasons of such rows by place; each row counts once, in however many epochs it fails.

    share: the largest share of `n` rows that may be passed over. found: those that are known already.
    """

    def __init__(self, share: float, n: int, found: dict[int, str], report: Callable[[dict[str, Any]], None]) -> None:
        self.found = found
        self._share = share
        self._n = n
        self._report = report

    def note(self, bad: Iterable[tuple[int, str]]) -> None:
        """Add rows, and report the first ones; raises TrainingError if they are more than the share."""
        for place, reason in bad:
            if place in self.found:
                continue
            self.found[place] = reason
            if len(self.found) > self._share * self._n:
                raise TrainingError(
                    f"{len(self.found):,} of {self._n:,} rows cannot be prepared, which is more than skip_bad_rows = "
                    f"{self._share:g}; the last one: {reason}"
                )
            if len(self.found) <= NAMED:
                self._report({"message": f"passed over: {reason}"})
