"""Examples: decoded rows by position, as trainings and validations read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, Protocol


class Examples(Protocol):
    """A fixed number of rows. Each row keeps its position; it may be deleted at any time."""

    def __len__(self) -> int: ...

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...] | None]:
        """Return, for each place, the decoded values in the order of the key's fields; None for a deleted row."""
        ...


def paired(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row of inputs and a target. The only value of a row is both, as copies: the model may change its input
    in place.
    """
    return row if len(row) > 1 else (row[0], deepcopy(row[0]))


class ListExamples:
    """Examples in memory: one tuple of values per row, or None for a deleted row."""

    def __init__(self, rows: Iterable[tuple[Any, ...] | None]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...] | None]:
        """Return the rows at these places."""
        return [self._rows[place] for place in places]
