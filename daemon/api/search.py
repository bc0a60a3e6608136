"""Searches: the rows whose outputs are nearest, by the indexes that are applied.

The vectors of an index are read once and followed (`daemon.listeners.followed_vectors`). What is searched for gets its
vector from the version that is live, and only outputs of the same generation are compared with it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from components.datatypes import datatype
from components.declarations import IndexDeclaration, ListenerDeclaration, ModelDeclaration, is_vector
from components.errors import DeclarationError, NotApplied, RowError, SignatureRefused
from daemon.api.component_loader import ComponentLoader
from daemon.api.connection import Connection
from daemon.config.sections import LimitsConfig
from daemon.handlers.predict.stages import Live
from daemon.handlers.search import embedded
from daemon.listeners.followed_vectors import FollowedVectors
from daemon.store.connection import reaching
from daemon.store.registry.accepted import accepted_settings
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.model_loader import Loaded

__all__ = ["Searches"]

ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True)
class _Index:
    """An index as it is applied now, with its listener and the model of that."""

    name: str
    declaration: IndexDeclaration
    listener: Component[ListenerDeclaration]
    model: Component[ModelDeclaration]
    fields: Mapping[str, str]


class Searches:
    """The searches of one connection, one at a time."""

    def __init__(self, connection: Callable[[], Connection]) -> None:
        self._open = connection
        self._followed: dict[str, tuple[Any, FollowedVectors]] = {}
        self._models: dict[str, tuple[str, Loaded]] = {}
        self._turn = threading.Lock()

    def close(self) -> None:
        """Forgets all vectors."""
        with self._turn:
            for _, each in self._followed.values():
                each.close()
            self._followed = {}

    def ranking(self, table: str, name: str, like: Any) -> Callable[[int], list[tuple[Any, float]]]:
        """A function that returns the keys of so many rows with their scores, the nearest first."""
        with self._turn:
            for _ in range(ATTEMPTS):
                index = self._index(name, table)
                wanted = self._vector(index, like)
                with reaching():
                    vectors = self._vectors(index).current()
                generation = index.listener.generation
                if self._index(name, table).listener.generation == generation:
                    break  # else another version is live: its outputs are those of the rows, or will be
            ours = vectors.count(generation)
        if ours < len(vectors):
            warnings.warn(
                f"index {name!r}: {len(vectors) - ours:,} of {len(vectors):,} outputs are of another version than the "
                "live one and are not compared; the listener predicts them anew",
                stacklevel=3,
            )

        def nearest(n: int) -> list[tuple[Any, float]]:
            with self._turn:
                return vectors.nearest(wanted, generation, n)

        return nearest

    def _index(self, name: str, table: str) -> _Index:
        """Raises NotApplied, SignatureRefused, or DeclarationError if the index is not of this table."""
        known = self._open().catalog()
        own = known.indexes.get(name)
        for kind, of in (("index", name), ("listener", own and own.declaration.listener)):
            if f"{kind}/{of}" in known.refused:
                raise SignatureRefused(f"{kind} {of!r}: {known.refused[f'{kind}/{of}']}")
        if own is None:
            raise NotApplied(self._open().registry().absent("index", name))
        return _complete(name, own.declaration, known, table)

    def _vector(self, index: _Index, like: Any) -> Any:
        kind = datatype(str(index.listener.declaration.output))
        if isinstance(like, Mapping):
            return embedded(self._live(index), like)
        try:
            return kind.decode(kind.encode(like))
        except RowError as error:
            raise DeclarationError(
                f"like: {error}; or give a document with the fields that the listener reads"
            ) from None

    def _live(self, index: _Index) -> Live:
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

    def _vectors(self, index: _Index) -> FollowedVectors:
        """The vectors of an index; new ones if anything that they depend on has changed."""
        at, of = self._open(), index.listener.declaration
        limit = accepted_settings(at.database, at.service, at.registry().trust).get("limits.index_bytes")
        most = limit if isinstance(limit, int) else LimitsConfig().index_bytes
        needs = (of.table, index.declaration.listener, datatype(str(of.output)), index.declaration.measure, most)
        before, followed = self._followed.get(index.name, (None, None))
        if followed is None or before != needs:
            if followed is not None:
                followed.close()
            followed = FollowedVectors(at.database, *needs)
            self._followed[index.name] = needs, followed
        return followed


def _complete(name: str, declaration: IndexDeclaration, known: Catalog, table: str) -> _Index:
    listener = known.listeners[declaration.listener]
    of = listener.declaration
    if of.table != table:
        raise DeclarationError(f"index {name!r} is of table {of.table!r}: db[{of.table!r}].like(..., index={name!r})")
    if not is_vector(of.output):
        raise DeclarationError(
            f"index {name!r}: the outputs of listener {listener.name!r} are no vectors; declare it with "
            'output = "vector[LENGTH]"'
        )
    return _Index(name, declaration, listener, known.models[of.model], known.fields(of.table))
