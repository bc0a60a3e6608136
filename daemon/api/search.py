"""Searches: the rows whose outputs are nearest, by the indexes that are applied.

The vectors of an index are read once and followed (`daemon.listeners.followed_vectors`). What is searched for gets its
vector from the version that is live, and only outputs of the same generation are compared with it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

from components.datatypes import datatype
from components.errors import DeclarationError, NotApplied, RowError
from daemon.api.component_loader import ComponentLoader
from daemon.api.connection import Connection
from daemon.handlers.predict.live import Live
from daemon.handlers.search import embedded, given
from daemon.listeners.index_vectors import Index, IndexVectors, applied
from daemon.store import names
from daemon.store.connection import reaching
from daemon.store.documents import read_one
from daemon.store.registry.model_loader import Loaded

ATTEMPTS: Final = 10


class Searches:
    """The searches of one connection, one at a time."""

    def __init__(self, connection: Callable[[], Connection]) -> None:
        self._open = connection
        self._vectors = IndexVectors()
        self._models: dict[str, tuple[str, Loaded]] = {}
        self._turn = threading.Lock()

    def close(self) -> None:
        """Forgets all vectors."""
        with self._turn:
            self._vectors.close()

    def ranking(self, table: str, name: str, like: Any) -> Callable[[int], list[tuple[Any, float]]]:
        """A function that returns the keys of so many rows with their scores, the nearest first."""
        with self._turn:
            for _ in range(ATTEMPTS):
                at, index = self._open(), self._index(name, table)
                wanted = self._vector(index, like)
                trust = at.registry().trust
                with reaching():
                    vectors = self._vectors.of(index, at.database, at.service, trust).current()
                generation = index.listener.generation
                if self._generation(index) == generation:
                    break  # else another version is live: its outputs are those of the rows, or will be
            ours = vectors.count(generation)
        if ours < len(vectors):
            warnings.warn(
                f"index {name!r}: {len(vectors) - ours:,} of {len(vectors):,} outputs are of another version than the "
                "live one and are not compared; the listener predicts them anew",
                stacklevel=3,
            )
        if not vectors.exact:
            warnings.warn(
                f"index {name!r}: its {len(vectors):,} vectors are more than limits.index_bytes holds as they are: "
                "each number is rounded to one byte, and the search is approximate; raise it for an exact one",
                stacklevel=3,
            )

        def nearest(n: int) -> list[tuple[Any, float]]:
            with self._turn:
                return vectors.nearest(wanted, generation, n)

        return nearest

    def _index(self, name: str, table: str) -> Index:
        """Raises NotApplied, SignatureRefused, or DeclarationError if the index is not of this table."""
        found = applied(self._open().catalog(), name)
        if found is None:
            raise NotApplied(self._open().registry().absent("index", name))
        if found.table != table:
            of = found.table
            raise DeclarationError(f"index {name!r} is of table {of!r}: db[{of!r}].like(..., index={name!r})")
        return found

    def _generation(self, index: Index) -> Any:
        """The generation of the index's listener now."""
        at = self._open()
        listener = {"_id": f"{at.service}/listener/{index.listener.name}"}
        with reaching():
            return (read_one(at.database[names.COMPONENTS], listener, {"generation": 1}) or {}).get("generation")

    def _vector(self, index: Index, like: Any) -> Any:
        kind = datatype(str(index.listener.declaration.output))
        if isinstance(like, Mapping):
            return embedded(self._live(index), like)
        try:
            return given(kind, kind.encode(like))
        except RowError as error:
            raise DeclarationError(
                f"like: {error}; or give a document with the fields that the listener reads"
            ) from None

    def _live(self, index: Index) -> Live:
        component, listener = index.model, index.listener.declaration
        identity = f"{component.served.signature}/{component.live}"
        kept = self._models.get(component.name)
        if kept is None or kept[0] != identity:
            kept = identity, ComponentLoader(self._open()).served(component)
            self._models[component.name] = kept
        key = listener.parsed_key
        types = tuple(datatype(index.fields[path]) if path in index.fields else None for path in key.fields)
        loaded, output = kept[1], datatype(str(listener.output))
        number, generation = loaded.version.number, index.listener.generation
        return Live(loaded.model, number, generation, key, types, loaded.threads, output)
