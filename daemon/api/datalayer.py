"""The Python API: an object for a database that a daemon keeps in sync.

    db = connect("embedded")                      connection.py, embedded_daemon.py
    db.apply(component)                           declare, sign and store it; the daemon does the rest: applier.py
    db["mnist"].insert(rows)                      rows, without the daemon: table.py
    db["docs"].like(row, index="docs")            the nearest rows, by an index: search.py
    db.load("TorchModel", "my-model")             from the registry, with the live weights: component_loader.py
    db.train("my-model"), db.resync("digit")      what the commands do too: controls.py

The daemon does all the work. This process only writes declarations and reads results, so it may end at any time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar, get_args

from components.datatypes import Datatype, datatype
from components.errors import DeclarationError, NotApplied, PredictdError
from daemon.api.applier import Applier
from daemon.api.component_loader import ComponentLoader
from daemon.api.connection import Connection, open_connection
from daemon.api.controls import Controls, at_least_one
from daemon.api.kinds import kind_of, named, type_name
from daemon.api.remover import remove
from daemon.api.search import Searches
from daemon.api.table import TableHandle
from daemon.api.versions import VersionList
from daemon.store.connection import reaching
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import Jobs, JobState, Kind

T = TypeVar("T")


def connect(
    target: str = "embedded",
    *,
    service: str | None = None,
    database: str | None = None,
    folder: str | Path | None = None,
    signing_key_file: str | Path | None = None,
) -> Datalayer:
    """The database that a daemon serves.

    target: "embedded" is the daemon of `folder` (".predictd" by default). If none runs there, this process starts one
        with a real MongoDB, and both end with this process. A daemon that another process started ends with that one.
        A MongoDB URI (docs/configuration.md lists the options that have no effect) is the daemon that is active in its
        database.
    service, database: which one to use, if several are served; the URI may name the database as well.
    signing_key_file: the service's key, which signs what is applied. By default the key of the folder, or, with a URI,
        the key that a daemon of this user noted on this machine. It is never one that the database names.

    Raises DeclarationError if an argument is invalid, NotServed if no daemon is active, MongoUnavailable if MongoDB
    does not answer or the daemon does not start.
    """
    return Datalayer(
        open_connection(target, service=service, database=database, folder=folder, signing_key_file=signing_key_file)
    )


class Datalayer(Controls):
    """A database that a daemon serves. Closing it ends the connection, and the daemon too if this process started it;
    leaving a `with` block closes it.

    Every method raises MongoUnavailable if MongoDB does not answer, and PredictdError after `close`.
    """

    def __init__(self, connection: Connection) -> None:
        self._at = connection
        self._searches = Searches(self._open)

    def apply(self, component: T, force: bool = False, wait: bool = True, confirm: str = "") -> T:
        """Puts a Table, a model (with its trainer and its validation), a Listener, a Validation or a VectorIndex into
        service, and returns it.

        An identical component that is applied already stays as it is. A different one, or any with `force`, replaces
        the component of its name. The daemon trains a model if its declaration or its trainer's is new. With `wait`
        this returns after the training: the model then holds its live weights, and its trainer the metric traces. For a
        listener it returns when all rows have their outputs.

        Raises DeclarationError if it cannot be applied (service.toml has the name, it cannot be serialized, it names a
        component that is not applied), PlanHeld if it would take away a large part of a listener's outputs, or replace
        them by an untrained model's (its `plan` says what it costs; `confirm` is the plan's name), SignatureRefused if
        the service's key cannot be read, and JobFailed, with the job's reason, if the training fails.
        """
        Applier(self._open()).apply(component, force=force, wait=wait, confirm=confirm)
        return component

    def load(self, type: str | type[Any], identifier: str) -> Any:  # noqa: A002 - as in the reference tutorial
        """A component as it is applied. A model has its live weights, and its trainer the traces of the training that
        made them.

        `type` is a class or its name ("TorchModel", "Model", "Table"...). Raises NotApplied if it was removed (and says
        when) or never applied, SignatureRefused if its declaration is not signed with the service's key,
        ArtifactRefused if its code cannot be loaded here.
        """
        return ComponentLoader(self._open()).load(type, identifier)

    def remove(self, type: str | type[Any], identifier: str, outputs: bool = False) -> None:  # noqa: A002
        """Takes a component out of service: a model with its versions, its trainer and its validations. Rows stay.

        With `outputs`, the outputs that a listener wrote into the rows are removed too; for a model, its listeners with
        their outputs. When a listener's removal returns, nothing writes its outputs any more. Raises NotApplied if it
        is not applied, DeclarationError if service.toml declares it or something needs it: the message names that.
        """
        remove(self._open(), type, identifier, outputs=outputs)

    def show(self, type: str | type[Any] | None = None, identifier: str | None = None) -> Any:  # noqa: A002
        """Everything that is applied, as a list of dictionaries; with `type`, its identifiers; with both arguments, all
        that is known of one component. Raises NotApplied.
        """
        known = self._open().catalog()
        if type is None:
            if identifier is not None:
                raise DeclarationError("show: give the type too, as in db.show('Model', 'my-model')")
            return [
                {"type": type_name(each), "identifier": named(each), "source": each.source}
                for kind in ("table", "model", "trainer", "validation", "listener", "index")
                for each in known.of(kind).values()
            ]
        kind, of = kind_of(type)
        there = {
            named(each): each
            for each in known.of(kind).values()
            if of in (None, getattr(each.declaration, "type", None))
        }
        if identifier is None:
            return sorted(there)
        if identifier not in there:
            raise NotApplied(self._at.registry().absent(kind, identifier))
        found = there[identifier]
        about: dict[str, Any] = {
            "type": type_name(found),
            "identifier": identifier,
            "source": found.source,
            "applied_at": found.applied_at,
        }
        if kind == "model":
            about |= {
                "live": found.live,
                "listeners": [name for name, each in known.listeners.items() if each.declaration.model == found.name],
            }
        if kind == "listener":
            about |= {"generation": found.generation, "paused": found.paused}
        return about | {"declaration": found.declaration.dump()}

    def __getitem__(self, table: str) -> TableHandle:
        """The rows of a table: `db["mnist"].insert(rows)`. Raises NotApplied if no such table is applied."""
        self._datatypes(table)
        return TableHandle(table, self._open().database, self._datatypes, self._searches.ranking)

    def versions(self, model: str) -> VersionList:
        """The versions of a model, oldest first: `db.versions("my-model").plot()` draws them. Raises NotApplied."""
        at = self._open()
        with reaching():
            found = Versions(at.database, at.service, model).listed()
        if not found and model not in at.catalog().models:
            raise NotApplied(at.registry().absent("model", model))
        return VersionList(model, found)

    def jobs(
        self,
        *,
        model: str | None = None,
        kind: str | None = None,
        target: str | None = None,
        state: str | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """The newest jobs, newest first, without their logs; of one model, kind ("train", "validate"), target or state,
        if given. Raises NotApplied or DeclarationError if there is no such thing.
        """
        at = self._open()
        for name, given, words in (("kind", kind, get_args(Kind)), ("state", state, get_args(JobState))):
            if given is not None and given not in words:
                raise DeclarationError(f"there is no {name} {given!r} of jobs; there is {', '.join(words)}")
        wanted = {"model": model, "kind": kind, "target": target, "state": state}
        matching = {name: value for name, value in wanted.items() if value is not None}
        with reaching():
            found = Jobs(at.database, at.service).listed(at_least_one(limit), **matching)
            if not found and model is not None:
                at.registry().expect(["model"], model)
            if not found and target is not None:
                at.registry().expect(["model", "validation"], target)
            return [job.document() for job in found]

    def logs(self, job: str) -> list[str]:
        """The last 200 lines of a job's log, with everything the user's code printed; `job` is its id, or the end of
        it. Raises NotApplied.
        """
        at = self._open()
        with reaching():
            found = Jobs(at.database, at.service).get(job)
        if found is None:
            raise NotApplied(f"there is no job {job!r}, or more than one id ends with that; db.jobs() lists them")
        return list(found.log or ())

    @property
    def uri(self) -> str:
        """The URI of its MongoDB, for any other client. It contains the user name and the password, if there are
        any.
        """
        return self._at.uri

    def close(self) -> None:
        """Ends the connection; a daemon that it started ends too, unless another connection of this process uses it. A
        second call does nothing.
        """
        self._searches.close()
        self._at.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Datalayer(service={self._at.service!r}, database={self._at.database.name!r}, at={self._at.shown!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a connection to the database cannot be serialized; in code that the daemon runs, use the row that it gets"
        )

    def _open(self) -> Connection:
        if self._at.closed:
            raise PredictdError("this connection is closed; connect again")
        return self._at

    def _datatypes(self, table: str) -> dict[str, Datatype]:
        at = self._open()
        return {path: datatype(spec) for path, spec in {**at.fields(table), **at.outputs(table)}.items()}
