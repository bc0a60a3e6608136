"""ComponentLoader: builds a component from its declaration in the registry, a model with its live weights and the
metric traces of its training.

Everything is verified before it is loaded: first the declaration's signature, then the hashes of its code. Code that
service.toml names is imported by the paths in the signed declaration, so no list of allowed packages is needed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from components.builders import build_index, build_listener, build_table, build_trainer, build_validation
from components.declarations import ModelDeclaration
from components.errors import DeclarationError, NotApplied, SignatureRefused
from components.import_paths import ImportPolicy
from components.model import Model
from daemon.api.connection import Connection
from daemon.api.kinds import kind_of, named, type_name
from daemon.store.connection import reaching
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.model_loader import Loaded, ModelLoader, until_live
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import Job

_PATH: Final = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*")


class ComponentLoader:
    """Loads components over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._at = connection

    def load(self, type_: str | type[Any], identifier: str) -> Any:
        """See `Datalayer.load`."""
        kind, of = kind_of(type_)
        known = self._at.catalog()
        component = self._found(known, kind, identifier)
        if of not in (None, getattr(component.declaration, "type", None)):
            raise NotApplied(f"{identifier!r} is a {type_name(component)}; load it as one")
        if kind == "table":
            return build_table(component.name, component.declaration)
        if kind == "listener":
            return build_listener(component.name, component.declaration)
        if kind == "index":
            return build_index(component.name, component.declaration)
        loader = self._loader(component)
        with reaching():
            if kind in {"validation", "trainer"}:
                model = component.declaration.model

                def served() -> Model:
                    return self._weighted(self._found(known, "model", model))

                if kind == "trainer":
                    return self._trainer(component, served)
                return build_validation(component.name, component.declaration, loader.resolve(component), served)
            return self._model(component, known)

    def refresh(self, model: Model, job: Job | None = None) -> None:
        """Gives the model that was just applied its live weights, and its trainer the traces of `job`, or else of the
        training that these weights come from.
        """
        with reaching():
            versions = self._versions(model.identifier)
            live = versions.live()
            component = self._at.catalog().models.get(model.identifier)
            if (
                live is not None
                and live.weights is not None
                and component is not None
                and live.signature == component.signature
            ):
                model.unpack(versions.weights(live))
            if model.applied_trainer is not None:
                number = (job.result or {}).get("version") if job is not None else None
                trained = versions.get(number) if isinstance(number, int) else None
                _give_traces(model.trainer, trained or _traced(live, versions))

    def code(self, component: Component[ModelDeclaration], step: str) -> Any:
        """The code of one step of a model. Raises what importing it raises."""
        with reaching():
            return self._loader(component).resolve(component)(component.declaration.code[step])

    def _found(self, known: Catalog, kind: str, identifier: str) -> Component[Any]:
        there = {named(each): each for each in known.of(kind).values()}
        if identifier in there:
            return there[identifier]
        if f"{kind}/{identifier}" in known.refused:
            raise SignatureRefused(f"{kind} {identifier!r}: {known.refused[f'{kind}/{identifier}']}")
        raise NotApplied(self._at.registry().absent(kind, identifier))

    def _model(self, component: Component[Any], known: Catalog) -> Model:
        model = self._weighted(component)
        trainer = known.trainers.get(component.name)
        if trainer is not None:
            model.trainer = self._trainer(trainer, lambda: model)
        mine = [each for each in known.validations.values() if each.declaration.model == component.name]
        # Several may be declared for one model; the one that came with it is the API's.
        for each in sorted(mine, key=lambda each: (each.source != "api", each.name))[:1]:
            resolve = self._loader(each).resolve(each)
            model.validation = build_validation(each.name, each.declaration, resolve, lambda: model)
        return model

    def _weighted(self, component: Component[Any]) -> Model:
        """The model with its live version's weights. If there is no version yet, it is made, so that every loader gets
        the same initial weights.
        """
        versions = self._versions(component.name)

        def load(declared: Component[Any]) -> Loaded | None:
            live, loader = versions.served(declared), self._loader(declared)
            if live is not None and live.loadable and live.signature == declared.signature:
                return loader.version(declared, live.number)
            return loader.loaded(declared)

        return until_live(lambda: self._found(self._at.catalog(), "model", component.name).served, load)[1].model

    def served(self, component: Component[ModelDeclaration]) -> Loaded:
        """The model with the weights of its live version, as the daemon serves it. Raises NotApplied if it has none
        yet, DeclarationError if its code is another here.
        """
        component, loader = component.served, self._loader(component)
        with reaching():
            live = self._versions(component.name).served(component)
            if live is None or not live.loadable or live.signature != component.signature:
                raise NotApplied(
                    f"model {component.name!r} has no live version yet: the daemon makes it, when it serves"
                )
            loaded = loader.version(component, live.number)
            if live.source != loader.source(component):
                raise DeclarationError(
                    f"model {component.name!r}: its code on this machine differs from that of the live version "
                    f"{live.number}; install the same, or restart this program"
                )
        return loaded

    def _trainer(self, component: Component[Any], model: Callable[[], Model]) -> Any:
        resolve = self._loader(component).resolve(component)
        trainer = build_trainer(component.name, component.declaration, resolve, model)
        versions = self._versions(component.name)
        _give_traces(trainer, _traced(versions.live(), versions))
        return trainer

    def _loader(self, component: Component[Any]) -> ModelLoader:
        """A new loader, so that the caller shares no built object with others."""
        roots = tuple({path.partition(":")[0] for path in _paths(component.declaration.dump())})
        return ModelLoader(self._at.database, self._at.service, ImportPolicy(roots), self._at.registry().trust)

    def _versions(self, model: str) -> Versions:
        return Versions(self._at.database, self._at.service, model, self._at.registry().trust)


def _traced(live: Version | None, versions: Versions) -> Version | None:
    """The version whose traces a trainer shows: the live one, else the newest trained one."""
    if live is not None and live.metric_steps:
        return live
    return next((each for each in reversed(versions.listed()) if each.metric_steps and each.state != "removed"), None)


def _give_traces(trainer: Any, version: Version | None) -> None:
    trainer.metric_values = (
        {} if version is None else {name: list(values) for name, values in version.metric_values.items()}
    )
    trainer.metric_steps = [] if version is None else list(version.metric_steps)
    trainer.history = [] if version is None else [dict(entry) for entry in version.history]


def _paths(body: Any) -> Iterator[str]:
    """Every string in a declaration that may be an import path."""
    if isinstance(body, str):
        if _PATH.fullmatch(body):
            yield body
    elif isinstance(body, Mapping):
        for value in body.values():
            yield from _paths(value)
    elif isinstance(body, list):
        for value in body:
            yield from _paths(value)
