"""The registry: puts declarations into `_predictd.components`, and keeps the generation of each listener.

The supervisor publishes the declarations of service.toml; clients of the Python API apply theirs. A worker or a job
reads all that it runs from here. A listener's *generation* fences its outputs. It is raised whenever the same row would
get another output: by another model, another key, another datatype of a key field, and by each promotion of its model
(see `daemon.store.registry.components`). A worker that finds a higher generation in a row reloads from here. A change
of `where` changes which rows are judged, not their outputs: it causes a scan, not a new generation. Other code or
another declaration of the model makes a new version, whose promotion raises the generation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from uuid import uuid4

from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from components.declarations import (
    KINDS,
    Declaration,
    ListenerDeclaration,
    ModelDeclaration,
    TableDeclaration,
    output_types,
    parsed,
    queries,
    section,
)
from components.errors import DeclarationError, NotApplied
from components.extended_json import decoded
from components.secrets import sealed
from components.signing_key import SigningKey
from daemon.store import names
from daemon.store.connection import Data, create_collection
from daemon.store.documents import read
from daemon.store.registry import other_services
from daemon.store.registry.components import Catalog, Component, canonical, catalog, signature
from daemon.store.registry.declarations import Declarations, taken
from daemon.store.registry.references import keys_stay, reads, refuse_dangling, users
from daemon.store.registry.trust import Trust, trust_of
from daemon.store.service import requests

# BadValue, FailedToParse, TypeMismatch; the other errors of a filter have codes from 51000 to 51999
_BAD_FILTER: Final = frozenset({2, 9, 14})
WHERE_IT_RUNS: Final = frozenset({"device", "threads", "preprocess_processes", "compile"})
"""The keys of a model that change no output."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A listener as a worker needs it: its own declaration, its model's, its table's fields, and its generation."""

    name: str
    listener: ListenerDeclaration
    model: Component[ModelDeclaration]
    fields: Mapping[str, str]
    generation: int
    signature: str

    @property
    def scope(self) -> str:
        """A hash of the rows that the listener judges, and of its worker, because another worker has another
        position.
        """
        return signature([getattr(self.listener, name) for name in ("table", "key", "where", "worker")])

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """The identity of the listener for its worker: if any part differs, the worker must be restarted."""
        return self.signature, self.scope, self.model.name, self.model.signature


class Registry:
    """The declarations of one service, read and written by a process of `epoch` (0 for the API's clients, which have
    none).
    """

    def __init__(
        self,
        database: Data,
        service: str,
        epoch: int,
        key: SigningKey | Trust,
        session: ClientSession | None = None,
    ) -> None:
        """`key`: what the process believes; a key alone makes the identity of a database that has none. `session`: the
        one that transactions are made in; by default one of their own.
        """
        self._database = database
        self._components: Collection[dict[str, Any]] = database[names.COMPONENTS]
        self.service = service
        self._epoch = epoch
        self._key = key
        self._declarations = Declarations(database, service, epoch, lambda: self.trust, session)

    @cached_property
    def trust(self) -> Trust:
        """What this process believes."""
        key = self._key
        return key if isinstance(key, Trust) else trust_of(self._database, self.service, key, make=True)

    # ---- reading --------------------------------------------------------------------------------------------------

    def read(self) -> Catalog:
        """Everything that is applied now, at one snapshot."""
        return catalog(self._database, self.service, self.trust)

    def worker(self, worker: str) -> dict[str, Declared]:
        """The listeners that a worker serves, without paused and refused ones. These will scan their tables when they
        are served again: the worker moves past their rows.
        """
        known = self.read()
        ours = served(known)
        for seen in {*self.trust.revisions, *known.refused} - {f"listener/{name}" for name in ours}:
            kind, _, name = seen.partition("/")
            if kind == "listener":
                self._declarations.forget_mark(name)
        return {name: _declared(name, known) for name in ours if known.listeners[name].declaration.worker == worker}

    def listener(self, name: str) -> Declared:
        """One listener as it is declared now. Raises DeclarationError if it is removed, paused or refused."""
        known = self.read()
        if name not in served(known):
            reason = known.refused.get(f"listener/{name}", "it is no longer declared, or is paused")
            raise DeclarationError(f"listeners.{name}: {reason}")
        return _declared(name, known)

    # ---- service.toml ---------------------------------------------------------------------------------------------

    def publish(self, declarations: Mapping[str, Mapping[str, Declaration | Mapping[str, Any]]]) -> None:
        """Publishes the complete declarations of service.toml: those that are missing from it are removed; those of the
        API stay.

        Raises Fenced if a newer leader has published. Raises DeclarationError if a name was applied through the API, or
        if another service of this database has a listener of the same name on the same table (both would write the same
        outputs).
        """
        seal = self.trust.seal
        wanted = {
            (kind, name): parsed(
                kind, name, given if isinstance(given, Declaration) else sealed(given, os.environ, seal)
            )
            for kind in KINDS
            for name, given in declarations.get(section(kind), {}).items()
        }
        for (kind, name), declaration in wanted.items():
            self.refuse_filters(kind, name, declaration)
        self._declarations.mend_epochs()
        known = self.read()
        self.refuse_names(wanted, known)
        tables = {name: declaration for (kind, name), declaration in wanted.items() if kind == "table"}
        listeners = {name: each.declaration for name, each in known.listeners.items() if each.source == "api"}
        listeners |= {name: declaration for (kind, name), declaration in wanted.items() if kind == "listener"}
        for (kind, name), declaration in wanted.items():
            trained = kind == "model" and ("trainer", name) in wanted and keys_stay(name, wanted, known)
            identity = _identity(declaration, tables, listeners)
            self._declarations.put(kind, name, declaration, "config", identity, trained=trained)
        self._remove_all_but([self._declarations.id(kind, name) for kind, name in wanted])
        self._create(tables)

    def _remove_all_but(self, kept: list[str]) -> None:
        gone = {
            "service": self.service,
            "state": "applied",
            "source": {"$ne": "api"},
            "_id": {"$nin": kept},
            "epoch": {"$not": {"$gt": self._epoch}},
            "kind": {"$in": list(KINDS)},
            "name": {"$type": "string"},
        }
        for component in list(read(self._components, gone, {"kind": 1, "name": 1})):
            self._declarations.remove(component["kind"], component["name"])

    # ---- the API --------------------------------------------------------------------------------------------------

    def apply(
        self,
        declared: Iterable[tuple[str, str, Declaration | Mapping[str, Any]]],
        *,
        force: bool = False,
        sizes: Mapping[str, int] | None = None,
    ) -> list[str]:
        """Applies each (kind, name, declaration) in order. Returns the "kind/name" of those that are new or changed.

        `sizes`: bytes of the blobs that they name, by SHA-256. With `force` each of them counts as changed. Raises
        DeclarationError if service.toml declares the name, or if a component that a declaration names is not applied.
        """
        changed = []
        declared = list(declared)
        trained = {name for kind, name, _ in declared if kind == "trainer"}
        for kind, name, given in declared:
            declaration, known = parsed(kind, name, given), self.read()
            other = known.of(kind).get(name)
            self.refuse(kind, name, declaration, known)
            if other is not None and not force and canonical(other.declaration) == canonical(declaration):
                continue
            forced = (other.forced if other else 0) + force
            tables = {table: each.declaration for table, each in known.tables.items()} | (
                {name: declaration} if kind == "table" else {}
            )
            listeners = {other: each.declaration for other, each in known.listeners.items()} | (
                {name: declaration} if kind == "listener" else {}
            )
            identity = _identity(declaration, tables, listeners)
            self._declarations.put(
                kind, name, declaration, "api", identity, forced, sizes, trained=kind == "model" and name in trained
            )
            changed.append(f"{kind}/{name}")
            if kind == "table":
                self._create([name])
            for reader in known.listeners.values():  # the same bytes may decode to another input now
                if name in reads(reader.declaration, kind):
                    again = _identity(reader.declaration, tables, listeners)
                    self._declarations.put(
                        "listener", reader.name, reader.declaration, reader.source, again, reader.forced
                    )
        return changed

    def refuse(self, kind: str, name: str, declaration: Declaration, known: Catalog) -> None:
        """Raises DeclarationError if the API cannot apply this declaration beside what is applied."""
        other = known.of(kind).get(name)
        if other is not None and other.source == "config":
            raise DeclarationError(taken(kind, name, "api"))
        refuse_dangling(kind, name, declaration, known)
        self.refuse_filters(kind, name, declaration)
        if isinstance(declaration, ListenerDeclaration):
            self._refuse_foreign({name: declaration})

    def remove(self, kind: str, name: str) -> None:
        """Removes a component that was applied through the API; a model with its trainer and its validations.

        Raises NotApplied if it is not applied, DeclarationError if service.toml declares it or something still needs
        it.
        """
        known = self.read()
        component = known.of(kind).get(name)
        if component is None and f"{kind}/{name}" not in known.refused:
            raise NotApplied(self.absent(kind, name))
        if component is not None and component.source == "config":
            raise DeclarationError(f"{kind} {name!r} is declared in service.toml; remove it there")
        if kind in ("table", "model", "listener", "validation") and (needing := users(known, kind, name)):
            raise DeclarationError(f"{kind} {name!r} is in use by {', '.join(needing)}; remove that first")
        if kind == "model":
            others: list[Component[Any]] = [*known.trainers.values(), *known.validations.values()]
            for other in others:
                if other.declaration.model == name and other.source == "api":
                    self._declarations.remove(other.kind, other.name)
        self._declarations.remove(kind, name)

    def absent(self, kind: str, name: str) -> str:
        """Why there is no such component."""
        return self._declarations.absent(kind, name)

    def expect(self, kinds: Sequence[str], name: str) -> None:
        """Raises NotApplied if no component of one of these kinds has the name."""
        if name not in self._declarations.applied(kinds):
            raise NotApplied(self.absent(kinds[0], name))

    # ---- operating a listener -------------------------------------------------------------------------------------

    def resync(self, listener: str, asked: str = "") -> None:
        """Has every row of the listener predicted again; once for each `asked`, if it is given. Raises NotApplied."""
        asked = asked or uuid4().hex
        once = {"$cond": [{"$eq": ["$asked", asked]}, "$generation", {"$add": [{"$ifNull": ["$generation", 0]}, 1]}]}
        self._listener(listener, [{"$set": {"generation": once, "asked": asked}}])
        requests.reload(self._database, self.service, [listener])

    def pause(self, listener: str) -> None:
        """Stops updating the listener's outputs until `resume`. Raises NotApplied."""
        self._listener(listener, {"$set": {"paused": True}})
        self._declarations.forget_mark(listener)

    def resume(self, listener: str) -> None:
        """Serves a paused listener again, from a scan on, because changes were skipped meanwhile. Raises NotApplied."""
        again = {}
        if self._components.count_documents({"_id": self._declarations.id("listener", listener), "paused": True}):
            self._declarations.forget_mark(listener)
            again = {"$set": {"resumed": uuid4().hex}}
        self._listener(listener, {"$unset": {"paused": ""}, **again})

    def _listener(self, name: str, update: Mapping[str, Any] | list[Mapping[str, Any]]) -> None:
        if not self._components.update_one(
            {"_id": self._declarations.id("listener", name), "state": "applied"}, update
        ).matched_count:
            raise NotApplied(self.absent("listener", name))

    # ---- shared ---------------------------------------------------------------------------------------------------

    def refuse_names(self, wanted: Mapping[tuple[str, str], Declaration], known: Catalog) -> None:
        """Whether service.toml may declare these names. Raises DeclarationError as `publish` does."""
        for kind, name in wanted:
            if (other := known.of(kind).get(name)) is not None and other.source == "api":
                raise DeclarationError(taken(kind, name, "config"))
        listeners = {name: each for (_, name), each in wanted.items() if isinstance(each, ListenerDeclaration)}
        self._refuse_foreign(listeners)

    def _refuse_foreign(self, listeners: Mapping[str, ListenerDeclaration]) -> None:
        tables = {name: each.table for name, each in listeners.items()}
        for name, reason in other_services.conflicts(self._database, self.service, tables):
            raise DeclarationError(f"listeners.{name}: {reason}")

    def refuse_filters(self, kind: str, name: str, declaration: Declaration) -> None:
        """Asks the server whether it accepts a declaration's filters: a worker would retry a refused filter
        endlessly.
        """
        for query in queries(declaration):
            find = {"find": query.table, "filter": decoded(query.where)}
            try:
                self._database.command("explain", find, verbosity="queryPlanner")
            except OperationFailure as error:
                if error.code in _BAD_FILTER or 51000 <= (error.code or 0) < 52000:
                    message = (error.details or {}).get("errmsg") or str(error)
                    raise DeclarationError(
                        f"{kind}s.{name}: MongoDB refuses its filter {query.where!r}: {message}"
                    ) from None
                raise

    def _create(self, tables: Iterable[str]) -> None:
        """Creates the tables that do not exist yet, so that a dropped table can be distinguished from a new one."""
        requests.prepare(self._database)
        for table in set(tables) - set(self._database.list_collection_names()):
            create_collection(self._database, table)


def served(known: Catalog) -> list[str]:
    """The listeners that must run: not paused, with a trusted model and table."""
    return [
        name
        for name, each in known.listeners.items()
        if not each.paused and each.declaration.model in known.models and each.declaration.table in known.tables
    ]


def _declared(name: str, known: Catalog) -> Declared:
    own = known.listeners[name]
    return Declared(
        name=name,
        listener=own.declaration,
        model=known.models[own.declaration.model].served,
        fields=known.fields(own.declaration.table),
        generation=own.generation,
        signature=own.signature,
    )


def _identity(
    declaration: Declaration, tables: Mapping[str, TableDeclaration], listeners: Mapping[str, ListenerDeclaration]
) -> str:
    """A hash of those parts of a declaration that determine outputs. Where a model runs is not
    among them, nor are a listener's limits.
    """
    if isinstance(declaration, ModelDeclaration):
        return signature({name: value for name, value in declaration.dump().items() if name not in WHERE_IT_RUNS})
    if not isinstance(declaration, ListenerDeclaration):
        return signature(declaration)
    fields = tables[declaration.table].fields if declaration.table in tables else {}
    fields = {**fields, **output_types(listeners, declaration.table)}
    types = {path: fields.get(path) for path in declaration.parsed_key.fields}
    output = [] if declaration.output is None else [declaration.output]  # an older release had none
    return signature([declaration.table, declaration.key, declaration.model, types, *output])
