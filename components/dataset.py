"""A dataset: the rows that a validation is computed on."""

from __future__ import annotations

from dataclasses import dataclass

from components.errors import DeclarationError
from components.names import check_identifier
from components.query import Query

__all__ = ["Dataset"]


@dataclass(frozen=True)
class Dataset:
    """Rows by name. With `pin` they are chosen once, so that every version meets the same ones; else each time anew.

    Raises DeclarationError.
    """

    identifier: str
    select: Query
    pin: bool = False

    def __post_init__(self) -> None:
        check_identifier(self.identifier, "dataset")
        if not isinstance(self.select, Query):
            raise DeclarationError(
                f"dataset {self.identifier!r}: select: expected a query such as db['mnist'], got {self.select!r}"
            )
        if not isinstance(self.pin, bool):
            raise DeclarationError(f"dataset {self.identifier!r}: pin: expected True or False, got {self.pin!r}")
