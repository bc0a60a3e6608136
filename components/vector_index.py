"""A vector index: finds rows by the outputs of a listener."""

from __future__ import annotations

from typing import Any

from components.declarations import IndexDeclaration, documented, made
from components.names import check_identifier


@documented(IndexDeclaration)
class VectorIndex:
    """Finds the rows of `listener`'s table whose outputs are nearest: `db["docs"].like({"text": ...}, index="docs")`.

    The listener declares `output="vector[LENGTH]"`. `measure`: "cosine" or "dot"; more is nearer. Raises
    DeclarationError.
    """

    def __init__(self, identifier: str, listener: str, **options: Any) -> None:
        check_identifier(identifier, "index")
        self.identifier = identifier
        self.declaration = made(IndexDeclaration, f"index {identifier!r}", {"listener": listener, **options})

    @property
    def listener(self) -> str:
        """The name of the listener."""
        return self.declaration.listener

    @property
    def measure(self) -> str:
        """How near two vectors are."""
        return self.declaration.measure

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VectorIndex):
            return NotImplemented
        return (self.identifier, self.declaration) == (other.identifier, other.declaration)

    def __hash__(self) -> int:
        return hash(self.identifier)

    def __repr__(self) -> str:
        return f"VectorIndex({self.identifier!r})"
