"""Builds a model in memory from its declaration in the registry, with the weights of its live version.

A version is a declaration, the source of the code that it names, and weights. If the live version was made for the
present declaration, its weights are loaded. Otherwise the first process to get here promotes another version:

1. a version that was live before and equals the present declaration, such as after a change was reverted;
2. else a new version with the weights of the last live version whose object was declared the same, if they fit (another
   `postprocess`, a corrected function);
3. else a new version with the declaration's initial weights, which are built once and from then on always loaded.

So every process that serves the model, and every restart, computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import structlog
from pymongo.database import Database

from components import artifacts
from components.builders import build_model
from components.code_source import source_hash
from components.datatypes import datatype
from components.declarations import ModelDeclaration
from components.errors import DeclarationError, PredictdError, SignatureRefused
from components.import_paths import ImportPolicy, imported
from components.model import Model
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.model_threads import ModelThreads
from daemon.handlers.predict.process_settings import PROCESS
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.components import Component, object_signature
from daemon.store.registry.registry import Declared
from daemon.store.registry.trust import Trust
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions

log = structlog.get_logger(__name__)

ATTEMPTS: Final = 10

S = TypeVar("S", Component[ModelDeclaration], Declared)
T = TypeVar("T")


class CodeChanged(DeclarationError):
    """The live version was made with other code than this process has imported; a new process has the new code."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with the weights of a version, and the threads in which it lives."""

    model: Model
    version: Version
    threads: ModelThreads = field(default_factory=ModelThreads)


def resolver(component: Component[Any], policy: ImportPolicy, blobs: Artifacts) -> Callable[[Any], Any]:
    """The function that turns the code that a declaration names into objects.

    An import path in service.toml must be allowed by `policy`. A declaration of the API is signed by a client that
    could as well have sent the code itself, so its import paths may name anything. Only the API may name an artifact.
    """

    def resolve(slot: Any) -> Any:
        if isinstance(slot, str):
            return policy.resolve(slot) if component.source == "config" else imported(slot)
        if component.source == "config":
            raise DeclarationError(f"{component.kind} {component.name!r}: service.toml names code by import path only")
        return artifacts.loads(slot, lambda digest: blobs.blob(digest, component.sizes.get(digest)))

    return resolve


class ModelLoader:
    """Builds the models of one service in one process. A module is imported once, so its source is read once."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        service: str,
        policy: ImportPolicy,
        trust: Trust,
        threads: Callable[[str], ModelThreads] = lambda _: ModelThreads(),
    ) -> None:
        """`trust` believes and signs versions; `threads(name)` returns the threads of a model that is about to be
        built.
        """
        self._trust = trust
        self._threads = threads
        self._database = database
        self._service = service
        self._policy = policy
        self._blobs = Artifacts(database)
        self._sources: dict[str, str] = {}
        self._programs: dict[str, str | None] = {}
        self._kept: dict[str, tuple[str, Loaded]] = {}

    def resolve(self, component: Component[Any]) -> Callable[[Any], Any]:
        """See `resolver`."""
        return resolver(component, self._policy, self._blobs)

    def versions(self, model: str) -> Versions:
        return Versions(self._database, self._service, model, self._trust)

    def live(self, read: Callable[[], Declared], *, fresh: bool, compiling: bool = False) -> tuple[Declared, Live]:
        """What a listener runs now: the model with its live version's weights, and the generation that belongs to it.

        With `fresh`, this process has just been started and may make a version of changed code; otherwise changed code
        raises CodeChanged. With `compiling`, one that serves uncompiled is loaded once more. Raises DeclarationError,
        which names the key, if the code cannot be imported or built, and PredictdError if stored weights are damaged.
        """
        declared, loaded = until_live(
            read, lambda declared: self.loaded(declared.model, fresh=fresh, compiling=compiling)
        )
        key = declared.listener.parsed_key
        types = tuple(datatype(declared.fields[path]) if path in declared.fields else None for path in key.fields)
        output = None if declared.listener.output is None else datatype(declared.listener.output)
        number, threads = loaded.version.number, loaded.threads
        return declared, Live(loaded.model, number, declared.generation, key, types, threads, output)

    def loaded(
        self, component: Component[ModelDeclaration], *, fresh: bool = True, compiling: bool = False
    ) -> Loaded | None:
        """The model with the weights of `component`'s live version; the listeners of one process share it.

        None if there was no such version to load: one was made and promoted, and the caller reads the registry again.
        """
        kept = self._kept.get(component.name)
        key = component.signature, component.live
        if kept is not None and (kept[0], kept[1].version.number) == key:
            model = kept[1].model
            if not (compiling and model.serves and model.to_compile):
                return kept[1]
        threads = self._threads(component.name)
        model = threads.model.run(self.built, component)
        versions = self.versions(component.name)
        try:
            version = versions.served(component)
        except SignatureRefused:
            if threads.model.run(model.state) is not None:
                raise
            version = None  # a model without weights is what is declared: another version serves the same
        if version is None or not version.loadable or version.signature != component.signature:
            self._make(component, model, versions, version)
            return None
        if version.source != self._sources[component.signature]:
            if not fresh:
                raise CodeChanged(
                    f"models.{component.name}: the live version {version.number} was made with other code than this "
                    "process runs"
                )
            self._make(component, model, versions, version)
            return None
        if version.weights is not None:
            threads.model.run(self._give, model, versions, version)
        threads.model.run(model.warm)
        loaded = Loaded(model, version, threads.loaded(model))
        self._kept[component.name] = (component.signature, loaded)
        return loaded

    def forget(self, model: str) -> None:
        """Load the model anew, when a listener asks for it next: its copy can no longer be used."""
        self._kept.pop(model, None)

    def version(self, component: Component[ModelDeclaration], number: int) -> Loaded:
        """The model with the weights of any version, live or not. Raises NotApplied, DeclarationError, WeightsError."""
        versions = self.versions(component.name)
        version = versions.get(number)
        if version is None or not version.loadable:
            raise DeclarationError(f"models.{component.name}: there is no version {number}, or its weights were pruned")
        if component.serving is not None and version.signature == component.serving.signature:
            component = component.serving
        model = self.built(component)
        if version.weights is not None:
            self._give(model, versions, version)
        return Loaded(model, version)

    def proposed(self, component: Component[ModelDeclaration]) -> Model:
        """The model as it would be served if `component` were applied: with the weights that its version would get."""
        model, versions = self.built(component), self.versions(component.name)
        live = None if component.live is None else versions.get(component.live)
        if self._given_alike(component, model, versions, live) is None:
            self._begin(component, model)
        return model

    def initial(self, component: Component[ModelDeclaration]) -> Model:
        """A new model with the weights that its declaration begins with. Raises WeightsError if a file has none."""
        model = self.built(component)
        self._begin(component, model)
        return model

    @staticmethod
    def _begin(component: Component[ModelDeclaration], model: Model) -> None:
        if component.declaration.weights is not None:
            from components.torch import weights

            model.load_state(weights.read(component.declaration.weights))

    def built(self, component: Component[ModelDeclaration]) -> Model:
        """A new model, as declared, with its initial weights."""
        resolve = self.resolve(component)
        with PROCESS.built(component.name):
            model = build_model(component.name, component.declaration, resolve)
        if component.signature not in self._sources:
            paths = [slot for slot in component.declaration.code.values() if isinstance(slot, str)]
            self._programs[component.signature] = model.program
            self._sources[component.signature] = source_hash([resolve(path) for path in paths], paths, model.program)
        return model

    def source(self, component: Component[ModelDeclaration]) -> str:
        """The hash of the code that a model's declaration names, as this process has imported it."""
        if component.signature not in self._sources:
            self.built(component)
        return self._sources[component.signature]

    def made_from(self, component: Component[ModelDeclaration]) -> str:
        """The `object_signature` of a model as this process has built it."""
        return object_signature(component.declaration, self._programs.get(component.signature))

    def _make(
        self, component: Component[ModelDeclaration], model: Model, versions: Versions, before: Version | None
    ) -> None:
        """Promotes the version that the present declaration needs, unless another process or another declaration is
        quicker.
        """
        source = self._sources[component.signature]
        alike = self._given_alike(component, model, versions, before)
        if alike is not None and (alike.signature, alike.source) == (component.signature, source):
            reason = f"it is what is declared again, as before version {component.live}"
            self._promote(component, versions, alike, reason)
            return
        origin, trained = "initial weights of the declaration (untrained)", component.declaration.begins_trained
        if model.state() is None:
            origin = "the object as it is declared"
        if trained:
            origin = f"pretrained weights: {component.declaration.weights or 'those that the object is built with'}"
        if alike is None:
            self._begin(component, model)
        if alike is not None and alike.weights is not None:
            origin, trained = f"the weights of version {alike.number}, with the code as it is now", alike.trained
        data, digest = packed(model)
        made = versions.add(
            data,
            digest,
            signature=component.signature,
            source=source,
            object_signature=self.made_from(component),
            origin=origin,
            parent=before.number if before else None,
            # A rollback goes to the weights before these: the same weights with other code are one step.
            replaced=component.live if alike is None else alike.replaced,
            trained=trained,
        )
        if not self._promote(component, versions, made, origin):
            versions.discard(made.number)

    def _given_alike(
        self, component: Component[ModelDeclaration], model: Model, versions: Versions, before: Version | None
    ) -> Version | None:
        """Gives the model the weights of a version that was live and whose object was declared as it is now. Returns
        that version, None if there is none.

        It prefers the version that equals the present declaration and has the live weights, then the live version, then
        the one that was live last. A version that is not signed, or whose weights are damaged or do not fit, is
        skipped.
        """
        now = (component.signature, self._sources[component.signature], before.content_hash if before else None)
        alike = versions.alike(component.declaration, component.live, self._programs[component.signature])
        for each in sorted(alike, key=lambda each: (each.signature, each.source, each.content_hash) != now):
            try:
                if each.weights is not None:
                    self._give(model, versions, each)
            except PredictdError as error:
                about = {"model": component.name, "version": each.number, "reason": str(error)}
                log.warning("the weights of a version that was live cannot be taken over", **about)
            else:
                return each
        return None

    @staticmethod
    def _promote(component: Component[ModelDeclaration], versions: Versions, version: Version, reason: str) -> bool:
        """Promotes a version. False if another process was quicker, or the declaration of the model has changed
        meanwhile.
        """
        try:
            done = versions.promote(version.number, reason=reason, live=component.live, back=True)
        except DeclarationError:
            return False
        if done:
            about = {"version": version.number, "content_hash": version.content_hash, "reason": reason}
            log.info("a version is live", model=component.name, **about)
        return done

    @staticmethod
    def _give(model: Model, versions: Versions, version: Version) -> None:
        model.unpack(versions.weights(version))


def until_live(read: Callable[[], S], load: Callable[[S], T | None]) -> tuple[S, T]:
    """Read the declaration and load its live version, again if another process changes it in between."""
    for _ in range(ATTEMPTS):
        declared = read()
        loaded = load(declared)
        if loaded is not None:
            return declared, loaded
    model = declared.model.name if isinstance(declared, Declared) else declared.name
    raise DeclarationError(f"models.{model}: another process keeps changing it; is its code the same on all machines?")


def packed(model: Model) -> tuple[bytes | None, str | None]:
    """A model's initial weights as stored, and their hash; (None, None) for an object, which begins as declared."""
    return (None, None) if model.state() is None else model.packed()
