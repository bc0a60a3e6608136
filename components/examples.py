"""Examples: decoded rows by their place, as trainings and validations read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

__all__ = ["Examples", "ListExamples"]


class Examples(Protocol):
    """A fixed number of rows. A row keeps its place; that it is still there is not promised."""

    def __len__(self) -> int: ...

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...] | None]:
        """The decoded values of the key's fields, in the key's order, for each place; None for a row that is gone."""
        ...


class ListExamples:
    """Examples in memory: one tuple of values for each row, or None for one that is gone."""

    def __init__(self, rows: Iterable[tuple[Any, ...] | None]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...] | None]:
        """The rows at these places."""
        return [self._rows[place] for place in places]
