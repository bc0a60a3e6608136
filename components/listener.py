"""A listener: binds a model to a key of a table, with an optional filter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.declarations import ListenerDeclaration, documented, made
from components.errors import DeclarationError
from components.key import Key, KeySpec
from components.model import Model
from components.names import check_identifier
from components.table import Table


@documented(ListenerDeclaration)
class Listener:
    """Runs `model` on the rows of `table` that hold every field of `key` and match `where`; writes
    `_outputs.<identifier>`. Model and table are given by name, or as what was applied.

    `latency_budget`: the longest time for one batch, in seconds; it limits the batch's size. `max_batch`: the most rows
    in a batch. `worker`: the name of the process that runs the listener (default: one for each model). `partitions`:
    how many processes share its rows. `scan_order`: whether a scan of all rows begins with the "newest" or the
    "oldest". `scan_rate`: the most rows per second in a scan; 0 means no limit. `output`: the datatype of the outputs
    ("array[float32,384]"), as which a chained listener and `db[table]` read them. `retry`:
    `{"attempts": 5, "within": "10m"}`, how often and how long a row with a temporary error is retried. Raises
    DeclarationError.
    """

    def __init__(
        self,
        identifier: str,
        table: str | Table,
        key: KeySpec,
        model: str | Model,
        where: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        check_identifier(identifier, "listener")
        owner = f"listener {identifier!r}"
        self.identifier = identifier
        self.where = {} if where is None else where
        named = {"table": getattr(table, "identifier", table), "model": getattr(model, "identifier", model)}
        given = {"key": key, "where": self.where, **named, **options}
        read = made(ListenerDeclaration, owner, given)
        self.declaration = read.model_copy(update={"key": read.parsed_key.spec})
        if identifier in self.parsed_key.upstream:
            raise DeclarationError(f"{owner}: key: reads its own output")

    @property
    def parsed_key(self) -> Key:
        """The fields that it reads."""
        return self.declaration.parsed_key

    def __getattr__(self, name: str) -> Any:
        """Return one of the declaration's fields."""
        if name in ListenerDeclaration.model_fields:
            return getattr(self.declaration, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        if "declaration" in self.__dict__:  # it is checked, and would not follow
            raise AttributeError(f"a listener does not change; make another one: Listener({self.identifier!r}, ...)")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Listener):
            return NotImplemented
        return (self.identifier, self.declaration) == (other.identifier, other.declaration)

    def __hash__(self) -> int:
        return hash(self.identifier)

    def __repr__(self) -> str:
        return f"Listener({self.identifier!r})"
