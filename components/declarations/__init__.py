"""Declarations as they are stored and signed: one frozen pydantic model for each kind of component.

Each field has its type, bounds, default and meaning.

    schema.py       the base class, and the types of fields
    models.py       tables, models, listeners
    trainers.py     trainers
    validations.py  validations
    indexes.py      vector indexes
    when.py         triggers

    service.toml -> its section ----+
    Listener(...), TorchTrainer(...) +-> declaration -> dump -> signed JSON -> declaration

This package is the only definition of a field. Its `description` completes the sentence "it must be ..." and `examples`
has a valid value: error messages use both. A field that is added later needs `exclude_if`, which leaves its
default out of the dump: a declaration that was stored without it keeps its text, its signature and its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from components.declarations.indexes import IndexDeclaration, is_vector
from components.declarations.models import (
    PARTITIONS,
    TUNED,
    ListenerDeclaration,
    ModelDeclaration,
    TableDeclaration,
    output_types,
)
from components.declarations.schema import Declaration, documented, made
from components.declarations.trainers import Keyed, LoopArguments, TrainerArguments, TrainerDeclaration, TrainerSection
from components.declarations.validations import (
    TORCHMETRICS,
    DatasetDeclaration,
    MetricDeclaration,
    ValidationArguments,
    ValidationDeclaration,
)
from components.declarations.when import When
from components.errors import DeclarationError

__all__ = [
    "KINDS",
    "PARTITIONS",
    "TORCHMETRICS",
    "TUNED",
    "DatasetDeclaration",
    "Declaration",
    "IndexDeclaration",
    "Keyed",
    "ListenerDeclaration",
    "LoopArguments",
    "MetricDeclaration",
    "ModelDeclaration",
    "TableDeclaration",
    "TrainerArguments",
    "TrainerDeclaration",
    "TrainerSection",
    "ValidationArguments",
    "ValidationDeclaration",
    "When",
    "documented",
    "is_vector",
    "made",
    "output_types",
    "parsed",
    "queries",
    "section",
]

KINDS: Final[Mapping[str, type[Declaration]]] = {
    "table": TableDeclaration,
    "model": ModelDeclaration,
    "listener": ListenerDeclaration,
    "trainer": TrainerDeclaration,
    "validation": ValidationDeclaration,
    "index": IndexDeclaration,
}


def section(kind: str) -> str:
    """Return the section of service.toml that declares a kind: "models" for "model"."""
    return "indexes" if kind == "index" else f"{kind}s"


def queries(declaration: Declaration) -> list[ListenerDeclaration | TrainerSection | DatasetDeclaration]:
    """Return the parts of a declaration that select rows by `table` and `where`."""
    if isinstance(declaration, ValidationDeclaration):
        return list(declaration.datasets.values())
    return [declaration] if isinstance(declaration, ListenerDeclaration | TrainerSection) else []


def parsed(kind: str, name: str, stored: Declaration | Mapping[str, Any]) -> Any:
    """Return the declaration that `dump` wrote; raises DeclarationError."""
    if isinstance(stored, Declaration):
        return stored
    if kind not in KINDS:
        raise DeclarationError(f"there is no kind {kind!r}; there is {', '.join(KINDS)}")
    return made(KINDS[kind], f"{kind} {name!r}", stored, stored=True)
