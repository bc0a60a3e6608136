"""The registry: what is declared, and the generation of each listener.

The supervisor publishes the declarations of service.toml; a worker reads those of its listeners, and needs nothing else to run
them. A listener's *generation* fences its outputs: it is raised whenever the same row would get another output (another
model, other code paths, another key, another datatype of a key field), and every worker that meets a higher generation in a row
reloads from here. A change of `where` changes which rows are judged, not what comes of them: it brings a scan, not a generation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import CollectionInvalid, DuplicateKeyError

from components.errors import DeclarationError, Fenced
from daemon.store import names

REQUEST_SECONDS = (
    7 * 24 * 3600
)  # a request reaches its worker through the stream, as soon as there is one; then it is of no use
KINDS = {"tables": "table", "models": "model", "listeners": "listener"}


@dataclass(frozen=True, slots=True)
class Declared:
    """A listener as a worker needs it: its own declaration, its model's, its table's fields, and its generation."""

    name: str
    listener: Mapping[str, Any]
    model: Mapping[str, Any]
    fields: Mapping[str, str]
    generation: int
    signature: str
    model_signature: str

    @property
    def scope(self) -> str:
        """A hash of which rows the listener takes, and of the worker that serves it: another one has another position."""
        return signature([self.listener[name] for name in ("table", "key", "where", "worker")])


def signature(declaration: Any) -> str:
    """A hash of a declaration: equal for equal declarations, whatever the order of their keys."""
    text = json.dumps(declaration, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Registry:
    """The declarations of one service in `_predictd.components`."""

    def __init__(self, database: Database[dict[str, Any]], service: str, epoch: int) -> None:
        self._database = database
        self._components: Collection[dict[str, Any]] = database[names.COMPONENTS]
        self._service = service
        self._epoch = epoch

    def publish(self, declarations: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Makes these declarations the service's own, whole: what is not among them is removed.

        Raises Fenced where a newer leader has published, and DeclarationError where another service of this database has a
        listener of the same name on the same table (both would write the same outputs).
        """
        self._refuse_foreign(declarations["listeners"])
        wanted: dict[str, dict[str, Any]] = {}
        for kind in ("tables", "models"):
            for name, declaration in declarations[kind].items():
                wanted[self._id(KINDS[kind], name)] = {
                    "declaration": declaration,
                    "signature": signature(self._essence(KINDS[kind], declaration)),
                }
        for name, declaration in declarations["listeners"].items():
            fields = declarations["tables"][declaration["table"]]["fields"]
            paths = declaration["key"] if isinstance(declaration["key"], (list, dict)) else [declaration["key"]]
            made_of = [
                declaration["table"],
                declaration["key"],
                declaration["model"],
                wanted[self._id("model", declaration["model"])]["signature"],
                {path: fields.get(path) for path in paths},
            ]
            wanted[self._id("listener", name)] = {"declaration": declaration, "signature": signature(made_of)}
        for identifier, component in wanted.items():
            self._put(identifier, component)
        self._remove_all_but(list(wanted))
        self._create(declarations["tables"])

    @staticmethod
    def _essence(kind: str, declaration: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of a declaration decides its outputs: the device, for one, does not."""
        return {k: v for k, v in declaration.items() if not (kind == "model" and k == "device")}

    def _put(self, identifier: str, component: Mapping[str, Any]) -> None:
        _, kind, name = identifier.split("/", 2)
        changed = {"$ne": ["$signature", component["signature"]]}
        raised = {"$add": [{"$ifNull": ["$generation", 0]}, {"$cond": [changed, 1, 0]}]}
        update = [
            {
                "$set": {
                    "service": {"$literal": self._service},
                    "kind": kind,
                    "name": {"$literal": name},
                    "source": "config",
                    "state": "applied",
                    "declaration": {"$literal": json.dumps(component["declaration"])},
                    "generation": raised,
                    "signature": component["signature"],
                    "epoch": self._epoch,
                    "applied_at": {"$cond": [changed, "$$NOW", {"$ifNull": ["$applied_at", "$$NOW"]}]},
                }
            }
        ]
        try:
            self._components.update_one({"_id": identifier, "epoch": {"$lte": self._epoch}}, update, upsert=True)
        except DuplicateKeyError:
            raise Fenced(f"a daemon with a higher epoch than {self._epoch} has published {identifier}") from None

    def _remove_all_but(self, kept: list[str]) -> None:
        gone = {"service": self._service, "state": "applied", "_id": {"$nin": kept}, "epoch": {"$lte": self._epoch}}
        removed = list(self._components.find(gone, {"kind": 1, "name": 1}))
        for component in removed:
            if component["kind"] == "listener":
                # Should it come back, its rows have changed meanwhile: without a mark it scans. The document stays, and with it
                # the epoch that fences an older leader; so does the generation; and the letters, whose rows still say so.
                self._database[names.SCANS].update_one(
                    {"_id": f"{self._service}/{component['name']}", "epoch": {"$lte": self._epoch}},
                    {"$set": {"state": "removed", "epoch": self._epoch, "run": ObjectId()}, "$unset": {"mark": ""}},
                )
            self._components.update_one({"_id": component["_id"]}, {"$set": {"state": "removed"}})

    def _refuse_foreign(self, listeners: Mapping[str, Mapping[str, Any]]) -> None:
        query = {
            "kind": "listener",
            "state": "applied",
            "name": {"$in": list(listeners)},
            "service": {"$ne": self._service},
        }
        for other in self._components.find(query):
            if json.loads(other["declaration"])["table"] == listeners[other["name"]]["table"]:
                raise DeclarationError(
                    f"listeners.{other['name']}: service {other['service']!r} has a listener of this name on this table, and both "
                    "would write the same outputs; give one of them another name"
                )

    def _create(self, tables: Mapping[str, Any]) -> None:
        """A table that nobody has written to yet exists from now on, so that a dropped one can be told from a new one."""
        self._database[names.REQUESTS].create_index("at", expireAfterSeconds=REQUEST_SECONDS)
        for table in set(tables) - set(self._database.list_collection_names()):
            with suppress(CollectionInvalid):  # a client was quicker
                self._database.create_collection(table)

    # ---- reading --------------------------------------------------------------------------------------------------

    def worker(self, worker: str) -> dict[str, Declared]:
        """The listeners that a worker of that name serves."""
        components = self._applied()
        listeners = components["listener"]
        return {
            name: self._declared(name, components)
            for name in listeners
            if json.loads(listeners[name]["declaration"])["worker"] == worker
        }

    def listener(self, name: str) -> Declared:
        """One listener as it is declared now. Raises DeclarationError where it is no longer declared."""
        components = self._applied()
        if name not in components["listener"]:
            raise DeclarationError(f"listeners.{name} is no longer declared")
        return self._declared(name, components)

    def _applied(self) -> dict[str, dict[str, dict[str, Any]]]:
        found: dict[str, dict[str, dict[str, Any]]] = {"table": {}, "model": {}, "listener": {}}
        for component in self._components.find({"service": self._service, "state": "applied"}):
            found[component["kind"]][component["name"]] = component
        return found

    @staticmethod
    def _declared(name: str, components: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Declared:
        own = components["listener"][name]
        listener = json.loads(own["declaration"])
        model = components["model"][listener["model"]]
        return Declared(
            name=name,
            listener=listener,
            model=json.loads(model["declaration"]),
            fields=json.loads(components["table"][listener["table"]]["declaration"])["fields"],
            generation=own["generation"],
            signature=own["signature"],
            model_signature=model["signature"],
        )

    def _id(self, kind: str, name: str) -> str:
        return f"{self._service}/{kind}/{name}"
