"""Overviews of a service: its declarations, each with its data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import Strict, TypeAdapter
from pymongo.database import Database
from pymongo.errors import OperationFailure

from components.declarations import parsed
from components.errors import DeclarationError
from components.extended_json import decoded
from components.raw_value import UNDECODABLE
from daemon.health.report import defaulting
from daemon.store import names
from daemon.store.documents import read, read_one
from daemon.store.partition import combined

COUNT_MS: Final = 1000
_TABLE: Final = re.compile(r"[^.$\0][^$\0]{0,200}(?<!\.)")


@dataclass(frozen=True, slots=True)
class _Live:
    """What is shown of a live version. A field whose value has another type reads as its default."""

    number: Annotated[int | None, defaulting(None)] = None
    origin: Annotated[str, defaulting("")] = ""
    content_hash: Annotated[str | None, defaulting(None)] = None
    created_at: Annotated[Annotated[datetime, Strict()] | None, defaulting(None)] = None
    metrics: Annotated[Mapping[str, float], defaulting({})] = field(default_factory=dict)


_ADAPTER: Final = TypeAdapter(_Live)


@dataclass(frozen=True, slots=True)
class _Applied:
    """A declaration, and the fields beside it in its document."""

    declaration: Any
    beside: Mapping[str, Any]


def _applied(database: Database[dict[str, Any]], service: str, kind: str) -> dict[str, _Applied]:
    """The declarations of a kind by name. Signatures are not checked, so a foreign declaration may be among them,
    but no unreadable one.
    """
    found: dict[str, _Applied] = {}
    for each in read(
        database[names.COMPONENTS], {"service": service, "kind": kind, "state": "applied"}, sort=[("name", 1)]
    ):
        name = each.get("name")
        if isinstance(name, str) and each.get("_id") == f"{service}/{kind}/{name}":
            declaration = declared(kind, name, each.get("declaration"))
            if declaration is not None:
                found[name] = _Applied(declaration, each)
    return found


def declared(kind: str, name: str, text: Any) -> Any:
    """The declaration in the text of a document; None if it cannot be read, or names a table that cannot be."""
    try:
        declaration = parsed(kind, name, json.loads(text))
    except (DeclarationError, TypeError, ValueError, RecursionError):
        return None
    table = name if kind == "table" else getattr(declaration, "table", "t")
    return declaration if _TABLE.fullmatch(table) else None


def tables(database: Database[dict[str, Any]], service: str) -> list[dict[str, Any]]:
    """Each table with its fields, its approximate number of rows, and its listeners."""
    listeners = _applied(database, service, "listener")
    return [
        {
            "name": name,
            "fields": dict(table.declaration.fields),
            "rows": database[name].estimated_document_count(),
            "listeners": [n for n, each in listeners.items() if each.declaration.table == name],
        }
        for name, table in _applied(database, service, "table").items()
    ]


def models(database: Database[dict[str, Any]], service: str) -> list[dict[str, Any]]:
    """Each model with its live version, None before it was first built; `object` is an import path, or the name of an
    artifact.
    """
    listeners = _applied(database, service, "listener")
    shown = []
    for name, model in _applied(database, service, "model").items():
        number = model.beside.get("live")
        version = read_one(database[names.VERSIONS], {"_id": f"{service}/{name}/{number}"})
        live = None if version is None else asdict(_ADAPTER.validate_python(version))
        users = [n for n, each in listeners.items() if each.declaration.model == name]
        code = model.declaration.object
        code = code if isinstance(code, str) else dict(code).get("name", "an artifact")
        shown.append(
            {"name": name, "source": model.beside.get("source"), "object": code, "live": live, "listeners": users}
        )
    return shown


def is_applied(database: Database[dict[str, Any]], service: str, kind: str, name: str) -> bool:
    """Whether there is such a component."""
    applied = {"_id": f"{service}/{kind}/{name}", "state": "applied"}
    return read_one(database[names.COMPONENTS], applied, {"_id": 1}) is not None


def scans(database: Database[dict[str, Any]], service: str) -> dict[str, dict[str, Any]]:
    """For each listener, how far the scan of its present generation is.

    `current`: its worker has begun that scan; `finished`: every row has been judged for what is live now.
    """
    listeners = _applied(database, service, "listener")
    known = read(database[names.SCANS], {"_id": {"$in": [f"{service}/{name}" for name in listeners]}})
    noted = {each["_id"]: each for each in known}
    found = {}
    for name, listener in listeners.items():
        scan = combined(noted.get(f"{service}/{name}", {}))
        mark = scan["mark"]
        generation = mark.get("generation") if isinstance(mark, Mapping) else None
        current = generation is not None and generation == listener.beside.get("generation")
        found[name] = {
            "model": listener.declaration.model,
            "worker": listener.declaration.worker,
            "paused": listener.beside.get("paused") is True,
            "current": current,
            "finished": current and scan["state"] == "done",
            "done": scan["done"],
        }
    return found


def waiting(database: Database[dict[str, Any]], service: str) -> dict[str, int | None]:
    """For each listener, how many rows match but lack a key field: they wait. None if counting takes too long."""
    counts: dict[str, int | None] = {}
    for name, listener in _applied(database, service, "listener").items():
        declaration = listener.declaration
        missing = {"$or": [{path: {"$exists": False}} for path in declaration.parsed_key.fields]}
        try:
            query = {"$and": [decoded(declaration.where), missing]}
            counts[name] = database[declaration.table].count_documents(query, maxTimeMS=COUNT_MS)
        except (OperationFailure, *UNDECODABLE):  # it takes too long, or the filter is none
            counts[name] = None
    return counts
