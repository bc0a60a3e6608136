"""The vectors of a service's indexes in one process, each as it is applied now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymongo.database import Database

from components.datatypes import datatype
from components.declarations import IndexDeclaration, ListenerDeclaration, ModelDeclaration, is_vector
from components.errors import DeclarationError, NotApplied, SignatureRefused
from daemon.config.sections import LimitsConfig
from daemon.listeners.followed_vectors import FollowedVectors
from daemon.store.registry.accepted import accepted_settings
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.trust import Trust


@dataclass(frozen=True, slots=True)
class Index:
    """An index as it is applied now, with its listener and the model of that."""

    name: str
    declaration: IndexDeclaration
    listener: Component[ListenerDeclaration]
    model: Component[ModelDeclaration]
    fields: Mapping[str, str]

    @property
    def table(self) -> str:
        """Whose rows it finds."""
        return self.listener.declaration.table


def applied(known: Catalog, name: str) -> Index | None:
    """An index with what it needs; None if there is no such index. Raises SignatureRefused, NotApplied or
    DeclarationError if it cannot be used.
    """
    own = known.indexes.get(name)
    needs = [f"index/{name}"] if own is None else [f"index/{name}", f"listener/{own.declaration.listener}"]
    for each in needs:
        if each in known.refused:
            kind, _, of = each.partition("/")
            raise SignatureRefused(f"{kind} {of!r}: {known.refused[each]}")
    if own is None:
        return None
    listener = known.listeners.get(own.declaration.listener)
    if (
        listener is None
        or listener.declaration.model not in known.models
        or listener.declaration.table not in known.tables
    ):
        raise NotApplied(f"index {name!r}: listener {own.declaration.listener!r} is not applied, or not what it needs")
    if not is_vector(listener.declaration.output):
        raise DeclarationError(
            f"index {name!r}: the outputs of listener {listener.name!r} are no vectors; declare it with "
            'output = "vector[LENGTH]"'
        )
    model, fields = known.models[listener.declaration.model], known.fields(listener.declaration.table)
    return Index(name, own.declaration, listener, model, fields)


class IndexVectors:
    """The vectors of each index that was searched in."""

    def __init__(self) -> None:
        self._followed: dict[str, tuple[tuple[Any, ...], FollowedVectors]] = {}

    def of(self, index: Index, database: Database[dict[str, Any]], service: str, trust: Trust) -> FollowedVectors:
        """Those of one index; new ones if anything that they depend on has changed."""
        limit = accepted_settings(database, service, trust).get("limits.index_bytes")
        most = limit if isinstance(limit, int) else LimitsConfig().index_bytes
        kind = datatype(str(index.listener.declaration.output))
        needs = (index.table, index.listener.name, kind, index.declaration.measure, most)
        kept = self._followed.get(index.name)
        if kept is None or kept[0] != needs:
            if kept is not None:
                kept[1].close()
            kept = self._followed[index.name] = needs, FollowedVectors(database, *needs)
        return kept[1]

    def close(self) -> None:
        """Forgets all vectors."""
        for _, each in self._followed.values():
            each.close()
        self._followed = {}
