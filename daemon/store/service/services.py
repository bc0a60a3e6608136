"""The services that daemons are active for, in one database or in any, for clients that look for theirs.

A service is served while its lease runs, by the server's clock. A lease that has just expired (its daemon was
killed) may be taken again soon; the caller decides how long to wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pymongo.database import Database

from daemon.store import names
from daemon.store.connection import Client, open_database, reaching
from daemon.store.documents import read

_ONE = {"$not": {"$type": "array"}}  # to MongoDB, an array has the types of its elements
_NOT_OURS = frozenset({"admin", "config", "local"})


@dataclass(frozen=True, slots=True)
class Served:
    """A service that a daemon is active for. `owner` is the instance id of the daemon's state directory."""

    database: str
    service: str
    owner: str
    host: str
    pid: int
    epoch: int


def served(database: Database[dict[str, Any]]) -> list[Served]:
    """The services of one database whose lease runs, by name. Raises MongoUnavailable."""
    with reaching():
        whole: dict[str, Any] = {name: {"$type": "string", **_ONE} for name in ("_id", "owner", "host")}
        whole |= {name: {"$type": ["int", "long"], **_ONE} for name in ("pid", "epoch")}
        running = {**whole, "expires": {"$type": "date", **_ONE}, "$expr": {"$gt": ["$expires", "$$NOW"]}}
        leases = list(read(database[names.LEASES], running, sort=[("_id", 1)]))
    return [
        Served(database.name, lease["_id"], lease["owner"], lease["host"], lease["pid"], lease["epoch"])
        for lease in leases
    ]


def find_served(client: Client) -> list[Served]:
    """The same for all databases that this user may see. Raises MongoUnavailable."""
    with reaching():
        databases = [name for name in client.list_database_names() if name not in _NOT_OURS]
    return [each for name in databases for each in served(open_database(client, name))]


def find_owned(client: Client, instance: str) -> Served | None:
    """The service that the daemon with this instance id is active for, None while there is none. Raises
    MongoUnavailable.
    """
    return next((each for each in find_served(client) if each.owner == instance), None)
