"""Removes a declaration from the registry and, if asked for, the outputs that the daemon wrote into the rows for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from components.errors import DeclarationError, NotApplied
from daemon.api.connection import Connection
from daemon.api.kinds import kind_of, named
from daemon.api.waiter import wait_until_unserved
from daemon.store.connection import reaching
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.references import users
from daemon.store.registry.versions import Versions
from daemon.store.rows import left_tables
from daemon.store.service import notify as bells
from daemon.store.service.jobs import Jobs
from daemon.store.service.services import served


def remove(connection: Connection, type_: str | type[Any], identifier: str, *, outputs: bool) -> None:
    """See `Datalayer.remove`."""
    kind, of = kind_of(type_)
    known = connection.catalog()
    if outputs and kind not in ("listener", "model"):
        raise DeclarationError(f"remove: outputs are a listener's, or a model's; a {kind} has none of its own")
    found = next((each for each in known.of(kind).values() if named(each) == identifier), None)
    if found is not None and of not in (None, getattr(found.declaration, "type", None)):
        raise NotApplied(connection.registry().absent(kind, identifier))
    if outputs and kind == "model" and found is not None:
        for listener in removable(known, identifier):
            _forget(connection, listener)
    if outputs and kind == "listener" and found is not None:
        _forget(connection, found)
        return
    _take_out(connection, kind, found.name if found is not None else identifier)


def _take_out(connection: Connection, kind: str, name: str) -> None:
    """Removes it from the registry. A model's trainings are cancelled and its weights deleted; the numbers and history
    of its versions stay. For a listener it returns when no worker writes its outputs any more.
    """
    with reaching():
        connection.registry().remove(kind, name)
        served_now = connection.service in {each.service for each in served(connection.database)}
        if kind == "model":
            jobs = Jobs(connection.database, connection.service)
            for job in jobs.listed(model=name, state={"$in": ["queued", "running"]}):
                jobs.cancel(job.id)
            Versions(connection.database, connection.service, name).remove()
        notification = bells.ring(connection.database, connection.service)
    if kind == "listener" and served_now:
        wait_until_unserved(connection, name, notification)


def removable(known: Catalog, model: str) -> list[Component[Any]]:
    """The listeners of a model, each after those that read it. Raises DeclarationError, before anything is removed, if
    something else needs one of them, or the model.
    """
    ordered: list[Component[Any]] = []
    left = known
    while of_model := [each for each in left.listeners.values() if each.declaration.model == model]:
        fixed = next((each.name for each in of_model if each.source == "config"), None)
        if fixed is not None:
            raise DeclarationError(
                f"listener {fixed!r} of model {model!r} is declared in service.toml; remove it there"
            )
        free = [each for each in of_model if not users(left, "listener", each.name)]
        own = {f"listener {each.name}" for each in of_model}
        for each in of_model if not free else ():
            if needing := ", ".join(name for name in users(left, "listener", each.name) if name not in own):
                raise DeclarationError(f"listener {each.name!r} is in use by {needing}; remove that first")
        ordered += free
        gone = {each.name for each in free}
        left = replace(left, listeners={name: each for name, each in left.listeners.items() if name not in gone})
    if needing := ", ".join(users(left, "model", model)):
        raise DeclarationError(f"model {model!r} is in use by {needing}; remove that first")
    return ordered


def _forget(connection: Connection, listener: Component[Any]) -> None:
    """Removes a listener, and its outputs and dead letters as soon as no worker writes them any more."""
    _take_out(connection, "listener", listener.name)
    with reaching():
        left_tables.clear(connection.database, connection.service, [listener])
        left_tables.without(connection.database, connection.service, listener.name, listener.declaration.table, None)
