"""The listeners of other services in the same database: two of one name on one table would write the same outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final

from daemon.store import names
from daemon.store.connection import Data
from daemon.store.documents import read


def conflicts(database: Data, service: str, tables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The listeners that this service cannot have, and why. tables: the table of each listener that it wants."""
    query = {"kind": "listener", "state": "applied", "name": {"$in": list(tables)}, "service": {"$ne": service}}
    for other in read(database[names.COMPONENTS], query):
        owner, name = other.get("service"), other.get("name")
        if not isinstance(name, str) or other.get("_id") != f"{owner}/listener/{name}":
            continue
        # Another service signs with its own key, so this is not verified: it can only refuse a listener.
        left, leaves = other.get("left"), {"table": tables[name]}.items()
        if isinstance(left, list) and any(isinstance(each, dict) and leaves <= each.items() for each in left):
            yield name, _LEAVES.format(owner)
        elif f'"table": {json.dumps(tables[name], ensure_ascii=False)}' in str(other.get("declaration")):
            yield name, _HAS.format(owner)


_LEAVES: Final = (
    "service {!r} had a listener of this name on this table, and still removes its outputs there; apply it when that "
    "is done, or give it another name"
)
_HAS: Final = (
    "service {!r} has a listener of this name on this table, and both would write the same outputs; give one of them "
    "another name, or remove it from that service's file first"
)
