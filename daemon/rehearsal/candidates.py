"""What is to be rehearsed: models as they would be served, each with its listeners."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from components.model import Model
from daemon.rehearsal.changes import concerned
from daemon.store.registry.components import Catalog, Component, signature
from daemon.store.registry.model_loader import ModelLoader
from daemon.store.registry.rehearsals import Part


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is to go live: `build` makes it, which may take long and raise anything; the listeners that it would
    serve, and the fields of each table.
    """

    model: str
    build: Callable[[], Model]
    listeners: Sequence[str]


def declared_anew(known: Catalog, parts: Sequence[Part], loader: ModelLoader) -> tuple[Catalog, Iterator[Candidate]]:
    """What is applied if these parts are, and the models that they concern."""
    after = known
    for part in parts:
        after = _with(after, part)
    models, listeners = concerned(after, parts)
    return after, (
        Candidate(
            name,
            lambda name=name: loader.proposed(after.models[name].served),  # type: ignore[misc]
            [each for each in listeners if after.listeners[each].declaration.model == name],
        )
        for name in models
    )


def of_version(known: Catalog, model: str, number: int, loader: ModelLoader) -> Iterator[Candidate]:
    """A stored version, for all listeners of its model; none if it cannot go live anyway, since it is of another
    declaration or there is no such version.
    """
    stored = loader.versions(model).get(number)
    if model not in known.models or stored is None or not stored.loadable:
        return
    component = known.models[model]
    if stored.signature in (component.signature, component.served.signature):
        listeners = [name for name, each in known.listeners.items() if each.declaration.model == model]
        yield Candidate(model, lambda: loader.version(component, number).model, listeners)


def _with(known: Catalog, part: Part) -> Catalog:
    there = known.of(part.kind)
    before = there.get(part.name)
    component = Component(
        kind=part.kind,
        name=part.name,
        source="config" if part.source == "config" else "api",
        declaration=part.declaration,
        revision=0,
        signature=signature(part.declaration),
        live=None if before is None else before.live,
        sizes=part.sizes,
    )
    return replace(known, **{f"{part.kind}s": {**there, part.name: component}})  # type: ignore[arg-type]
