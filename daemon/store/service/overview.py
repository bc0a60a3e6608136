"""Overviews of a service: its declarations, each with its data."""

from __future__ import annotations

import json
from typing import Any, Final

from pymongo.database import Database
from pymongo.errors import OperationFailure

from components.extended_json import decoded
from daemon.store import names

COUNT_MS: Final = 1000


_NEEDED: Final = {
    "table": {"fields"},
    "model": {"object"},
    "listener": {"table", "model", "key", "where", "worker"},
}


def _applied(database: Database[dict[str, Any]], service: str, kind: str) -> dict[str, dict[str, Any]]:
    """The declarations of a kind by name. Signatures are not checked, so a foreign declaration may be among them,
    but no unreadable one.
    """
    found = database[names.COMPONENTS].find({"service": service, "kind": kind, "state": "applied"}).sort("name", 1)
    read = [(each, _declaration(each)) for each in found if each["_id"] == f"{service}/{kind}/{each.get('name')}"]
    return {each["name"]: {**each, "declaration": body} for each, body in read if _NEEDED[kind] <= body.keys()}


def _declaration(document: dict[str, Any]) -> dict[str, Any]:
    try:
        body = json.loads(document["declaration"])
    except (KeyError, TypeError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def tables(database: Database[dict[str, Any]], service: str) -> list[dict[str, Any]]:
    """Each table with its fields, its approximate number of rows, and its listeners."""
    listeners = _applied(database, service, "listener")
    return [
        {
            "name": name,
            "fields": table["declaration"]["fields"],
            "rows": database[name].estimated_document_count(),
            "listeners": [n for n, each in listeners.items() if each["declaration"]["table"] == name],
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
        live = None
        if model.get("live") is not None:
            live = database[names.VERSIONS].find_one(
                {"_id": f"{service}/{name}/{model['live']}"},
                {"number": 1, "origin": 1, "content_hash": 1, "created_at": 1, "metrics": 1, "_id": 0},
            )
        users = [n for n, each in listeners.items() if each["declaration"]["model"] == name]
        code = model["declaration"]["object"]
        code = code if isinstance(code, str) else code.get("name", "an artifact")
        shown.append({"name": name, "source": model["source"], "object": code, "live": live, "listeners": users})
    return shown


def is_applied(database: Database[dict[str, Any]], service: str, kind: str, name: str) -> bool:
    """Whether there is such a component."""
    return (
        database[names.COMPONENTS].find_one({"_id": f"{service}/{kind}/{name}", "state": "applied"}, {"_id": 1})
        is not None
    )


def scans(database: Database[dict[str, Any]], service: str) -> dict[str, dict[str, Any]]:
    """For each listener, how far the scan of its present generation is.

    `current`: its worker has begun that scan; `finished`: every row has been judged for what is live now.
    """
    listeners = _applied(database, service, "listener")
    noted = {
        each["_id"]: each
        for each in database[names.SCANS].find({"_id": {"$in": [f"{service}/{name}" for name in listeners]}})
    }
    found = {}
    for name, listener in listeners.items():
        declaration, scan = listener["declaration"], noted.get(f"{service}/{name}", {})
        current = (scan.get("mark") or {}).get("generation") == listener.get("generation")
        found[name] = {
            "model": declaration["model"],
            "worker": declaration["worker"],
            "paused": bool(listener.get("paused")),
            "current": current,
            "finished": current and scan.get("state") == "done",
            "done": scan.get("done", 0),
        }
    return found


def waiting(database: Database[dict[str, Any]], service: str) -> dict[str, int | None]:
    """For each listener, how many rows match but lack a key field: they wait. None if counting takes too long."""
    counts: dict[str, int | None] = {}
    for name, listener in _applied(database, service, "listener").items():
        declaration = listener["declaration"]
        key = declaration["key"]
        paths = [key] if isinstance(key, str) else list(key)
        query = {"$and": [decoded(declaration["where"]), {"$or": [{path: {"$exists": False}} for path in paths]}]}
        try:
            counts[name] = database[declaration["table"]].count_documents(query, maxTimeMS=COUNT_MS)
        except OperationFailure:
            counts[name] = None
    return counts
