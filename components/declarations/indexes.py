"""The declaration of a vector index: rows are found by how near a listener's outputs are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.datatypes import datatype
from components.declarations.schema import Declaration


class IndexDeclaration(Declaration):
    """A vector index: finds the rows of a listener whose outputs, vectors of one length, are nearest to another."""

    listener: str = Field(description='the name of a listener with output = "vector[LENGTH]"', examples=["embed"])
    measure: Literal["cosine", "dot"] = Field(
        default="cosine", description='"cosine" or "dot"; more is nearer', examples=["dot"]
    )


def is_vector(output: str | None) -> bool:
    """Return whether the datatype of a listener's outputs is a vector."""
    return output is not None and datatype(output).spec.startswith("vector[")
