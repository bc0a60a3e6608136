"""What there is, for people: the declarations of a service beside what the database holds of them."""

from __future__ import annotations

import json
from typing import Any, Final

from pymongo.database import Database
from pymongo.errors import OperationFailure

from daemon.config import decoded_filter
from daemon.store import names

COUNT_MS: Final = 1000


def _applied(database: Database[dict[str, Any]], service: str, kind: str) -> dict[str, dict[str, Any]]:
    found = database[names.COMPONENTS].find({"service": service, "kind": kind, "state": "applied"}).sort("name", 1)
    return {each["name"]: {**each, "declaration": json.loads(each["declaration"])} for each in found}


def tables(database: Database[dict[str, Any]], service: str) -> list[dict[str, Any]]:
    """Each table with its fields, about how many rows it has, and who listens to it."""
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
    """Each model with its live version, None before it was first built."""
    listeners = _applied(database, service, "listener")
    shown = []
    for name, model in _applied(database, service, "model").items():
        live = database[names.VERSIONS].find_one(
            {"service": service, "model": name, "state": "live"},
            {"number": 1, "origin": 1, "content_hash": 1, "created_at": 1, "_id": 0},
            sort=[("number", -1)],
        )
        users = [n for n, each in listeners.items() if each["declaration"]["model"] == name]
        shown.append({"name": name, "object": model["declaration"]["object"], "live": live, "listeners": users})
    return shown


def waiting(database: Database[dict[str, Any]], service: str) -> dict[str, int | None]:
    """For each listener, how many rows match but lack a key field: they wait. None where counting takes too long."""
    counts: dict[str, int | None] = {}
    for name, listener in _applied(database, service, "listener").items():
        declaration = listener["declaration"]
        key = declaration["key"]
        paths = [key] if isinstance(key, str) else list(key)
        query = {
            "$and": [decoded_filter(declaration["where"]), {"$or": [{path: {"$exists": False}} for path in paths]}]
        }
        try:
            counts[name] = database[declaration["table"]].count_documents(query, maxTimeMS=COUNT_MS)
        except OperationFailure:
            counts[name] = None
    return counts
