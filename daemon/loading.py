"""From a declaration in the registry to a model in memory, with the weights of its live version.

A version is a declaration, the source of the code that it names, and weights. Where the live version was made for what is declared now, its weights are
loaded. Where it was not, a new version is made and promoted here, by whichever process comes first: with the weights of the one before it, where the
object is still declared alike and they fit (another `postprocess`, a mended function), else with the declaration's initial weights, which are built once and
from then on always loaded. So every process that serves the model, and every restart, computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from pymongo.database import Database

from components import artifacts, declaring
from components.datatypes import datatype
from components.errors import DeclarationError, WeightsError
from components.importing import ImportPolicy
from components.listener import Key
from components.model import Model
from daemon.handlers.predict import Live
from daemon.store.artifacts import Artifacts
from daemon.store.components import Component, signature
from daemon.store.registry import Declared
from daemon.store.versions import Version, Versions

__all__ = ["CodeChanged", "Loaded", "Loader", "resolver"]

log = structlog.get_logger(__name__)

ATTEMPTS: Final = 10
_CODE: Final = ("object", "preprocess", "preprocess_batch", "postprocess")
_OBJECT: Final = ("type", "object", "arguments")


class CodeChanged(DeclarationError):
    """The live version was made with other code than this process has imported; a new process has the new code."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with the weights of a version."""

    model: Model
    version: Version


def resolver(component: Component, policy: ImportPolicy, blobs: Artifacts) -> Callable[[Any], Any]:
    """What turns the code that a declaration names into objects.

    An import path of service.toml must lie in `policy`. One that came through the API is signed by somebody who could as well have sent the
    code itself, so it may name anything; and only there may an artifact stand.
    """

    def resolve(slot: Any) -> Any:
        if isinstance(slot, str):
            return (policy if component.source == "config" else ImportPolicy((slot.partition(":")[0],))).resolve(slot)
        if component.source == "config":
            raise DeclarationError(f"{component.kind} {component.name!r}: service.toml names code by import path only")
        return artifacts.loads(slot, blobs.blob)

    return resolve


class Loader:
    """Builds the models of one service in one process. What has been imported is not imported again, so neither is its source read again."""

    def __init__(self, database: Database[dict[str, Any]], service: str, policy: ImportPolicy) -> None:
        self._database = database
        self._service = service
        self._policy = policy
        self._blobs = Artifacts(database)
        self._sources: dict[str, str] = {}
        self._kept: dict[str, tuple[str, Loaded]] = {}

    def resolve(self, component: Component) -> Callable[[Any], Any]:
        """See `resolver`."""
        return resolver(component, self._policy, self._blobs)

    def versions(self, model: str) -> Versions:
        """The versions of a model."""
        return Versions(self._database, self._service, model)

    def live(self, read: Callable[[], Declared], *, fresh: bool) -> tuple[Declared, Live]:
        """What a listener runs now: the model with its live version's weights, under the generation that belongs to it.

        `fresh` says that this process has just been started, and may make a version of code that has changed; else that raises CodeChanged. Raises
        DeclarationError, naming the key, where the code cannot be imported or built, and PredictdError where stored weights are damaged.
        """
        for _ in range(ATTEMPTS):
            declared = read()
            loaded = self.loaded(declared.model, fresh=fresh)
            if loaded is not None:
                key = Key.parse(declared.listener["key"])
                types = tuple(
                    datatype(declared.fields[path]) if path in declared.fields else None for path in key.fields
                )
                return declared, Live(loaded.model, loaded.version.number, declared.generation, key, types)
        raise DeclarationError(
            f"models.{declared.model.name}: another process keeps changing it; is its code the same on all machines?"
        )

    def loaded(self, component: Component, *, fresh: bool = True) -> Loaded | None:
        """The model with the weights of the version that `component` says is live; listeners of one process share it.

        None where there was none to load: one was made, and the registry says so now.
        """
        kept = self._kept.get(component.name)
        if kept is not None and kept[0] == component.signature and kept[1].version.number == component.live:
            return kept[1]
        model = self.built(component)
        versions = self.versions(component.name)
        version = None if component.live is None else versions.get(component.live)
        if version is None or not version.loadable or version.signature != component.signature:
            self._make(component, model, versions, version)
            return None
        if version.source != self._sources[component.signature]:
            if not fresh:
                raise CodeChanged(
                    f"models.{component.name}: the live version {version.number} was made with other code than this process runs"
                )
            self._make(component, model, versions, version)
            return None
        if version.weights is not None:
            self._give(model, versions, version)
        model.warm()
        loaded = Loaded(model, version)
        self._kept[component.name] = (component.signature, loaded)
        return loaded

    def version(self, component: Component, number: int) -> Loaded:
        """The model with the weights of any version, live or not. Raises NotApplied, DeclarationError, WeightsError."""
        versions = self.versions(component.name)
        version = versions.get(number)
        if version is None or not version.loadable:
            raise DeclarationError(f"models.{component.name}: there is no version {number}, or its weights were pruned")
        model = self.built(component)
        if version.weights is not None:
            self._give(model, versions, version)
        return Loaded(model, version)

    def built(self, component: Component) -> Model:
        """A model of its own, as declared, with its initial weights."""
        resolve = self.resolve(component)
        model = declaring.build_model(component.name, component.body, resolve)
        if component.signature not in self._sources:
            paths = [slot for slot in map(component.body.get, _CODE) if isinstance(slot, str)]
            self._sources[component.signature] = declaring.source_hash([resolve(path) for path in paths])
        return model

    def source(self, component: Component) -> str:
        """The hash of the code that a model's declaration names, as this process has imported it."""
        if component.signature not in self._sources:
            self.built(component)
        return self._sources[component.signature]

    def _make(self, component: Component, model: Model, versions: Versions, before: Version | None) -> None:
        """Stores and promotes the version that the declaration, as it is now, asks for; another process may be quicker."""
        carried = before is not None and before.loadable and before.object_signature == object_signature(component.body)
        origin, trained = "initial weights of the declaration (untrained)", False
        if carried and before is not None and before.weights is not None:
            try:
                self._give(model, versions, before)
                origin, trained = f"the weights of version {before.number}, with the code as it is now", before.trained
            except WeightsError as misfit:
                log.warning(
                    "the weights do not fit the new code: it begins untrained", model=component.name, reason=str(misfit)
                )
                model = self.built(component)
        data, digest = packed(model)
        made = versions.add(
            data,
            digest,
            signature=component.signature,
            source=self._sources[component.signature],
            object_signature=object_signature(component.body),
            origin=origin,
            parent=before.number if before else None,
            trained=trained,
        )
        if versions.promote(made.number, reason=origin, live=component.live):
            log.info("a version is live", model=component.name, version=made.number, content_hash=digest, origin=origin)
        else:
            versions.discard(made.number)

    @staticmethod
    def _give(model: Model, versions: Versions, version: Version) -> None:
        from components.torch import weights  # whoever has weights has torch; the supervisor never gets here

        model.load_state(weights.load(versions.weights(version)))


def packed(model: Model) -> tuple[bytes | None, str | None]:
    """A model's weights as they are stored, and the hash over all of them; None twice for a model that has none."""
    state = model.state()
    if state is None:
        return None, None
    from components.torch import weights

    return weights.save(state), weights.content_hash(state)


def object_signature(body: Mapping[str, Any]) -> str:
    """A hash of what a model's initial weights come from: while it is the same, trained weights outlive a change of the rest."""
    return signature({name: body.get(name) for name in _OBJECT})
