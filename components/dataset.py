"""A dataset: the rows on which a validation measures a model."""

from __future__ import annotations

from dataclasses import dataclass

from components.declarations import DatasetDeclaration, made
from components.errors import DeclarationError
from components.names import check_identifier
from components.query import Query


@dataclass(frozen=True)
class Dataset:
    """A named set of rows.

    With `pin` the rows are chosen once, and count as they were then, so every version is measured on the same content.
    Otherwise each validation chooses them again. `sample`: so many of the rows, chosen by `seed`: the same ones again.
    Raises DeclarationError.
    """

    identifier: str
    select: Query
    pin: bool = False
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_identifier(self.identifier, "dataset")
        if not isinstance(self.select, Query):
            raise DeclarationError(
                f"dataset {self.identifier!r}: select: expected a query such as db['mnist'], got {self.select!r}"
            )
        object.__setattr__(self, "select", self.select.plain())
        if not isinstance(self.pin, bool):
            raise DeclarationError(f"dataset {self.identifier!r}: pin: expected True or False, got {self.pin!r}")
        given = {"table": self.select.table, "limit": self.select.max_rows, "sample": self.sample, "seed": self.seed}
        made(DatasetDeclaration, f"dataset {self.identifier!r}", given)
