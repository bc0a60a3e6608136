"""What of some declarations differs from what is applied, as far as outputs depend on it: that is to be rehearsed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from components.declarations import ListenerDeclaration, ModelDeclaration, TableDeclaration
from daemon.store.registry.components import Catalog, canonical
from daemon.store.registry.rehearsals import Part


def changed(known: Catalog, parts: Iterable[Part], also: Collection[str] = ()) -> list[Part]:
    """The tables, models and listeners that differ from what is applied; none if they are only new tables, which no
    listener reads.

    also: sections ("models.lenet") that count as changed in any case, because the code behind them has changed.
    """
    found = [
        part
        for part in parts
        if isinstance(part.declaration, (TableDeclaration, ModelDeclaration, ListenerDeclaration))
        and (f"{part.kind}s.{part.name}" in also or _differs(part, known))
    ]
    return found if any(part.kind != "table" or part.name in known.tables for part in found) else []


def _differs(part: Part, known: Catalog) -> bool:
    before = known.of(part.kind).get(part.name)
    return before is None or _judged(before.declaration) != _judged(part.declaration)


def _judged(declaration: Any) -> Any:
    """The parts of a declaration that a rehearsal judges: not how fast or where a listener works."""
    if isinstance(declaration, ListenerDeclaration):
        return [declaration.table, declaration.key, declaration.model, declaration.where, declaration.output]
    return canonical(declaration)


def concerned(known: Catalog, parts: Iterable[Part]) -> tuple[list[str], list[str]]:
    """The models to build and the listeners to rehearse, by name, for these changes; `known` holds them already."""
    names = {(part.kind, part.name) for part in parts}
    listeners = [
        name
        for name, each in known.listeners.items()
        if not names.isdisjoint(
            {("listener", name), ("model", each.declaration.model), ("table", each.declaration.table)}
        )
        and each.declaration.model in known.models
        and each.declaration.table in known.tables
    ]
    models = {known.listeners[name].declaration.model for name in listeners}
    return sorted(models | {name for kind, name in names if kind == "model"}), listeners
