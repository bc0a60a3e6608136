"""A dataset: the rows on which a validation measures a model."""

from __future__ import annotations

from dataclasses import dataclass

from components.errors import DeclarationError
from components.names import check_identifier
from components.query import Query


@dataclass(frozen=True)
class Dataset:
    """A named set of rows.

    With `pin` the rows are chosen once, so every version is measured on the same rows. Otherwise each validation
    chooses them again. Raises DeclarationError.
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
        object.__setattr__(self, "select", self.select.plain())
        if not isinstance(self.pin, bool):
            raise DeclarationError(f"dataset {self.identifier!r}: pin: expected True or False, got {self.pin!r}")
