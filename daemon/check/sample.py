"""Reads a few real rows of each listener, for `predictd check --rows`."""

from __future__ import annotations

from typing import Any, Final

from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from components.extended_json import decoded
from components.raw_value import RAW
from daemon.config import Config
from daemon.store.connection import reaching

__all__ = ["rows_of"]

ROWS: Final = 8
BYTES: Final = 16 * 1024 * 1024


def rows_of(config: Config, database: Database[dict[str, Any]]) -> dict[str, list[bytes]]:
    """Return for each listener the documents, in BSON, of up to eight of the rows inserted last that match it. Raises
    MongoUnavailable.
    """
    found: dict[str, list[bytes]] = {}
    for name, listener in config.listeners.items():
        fields = listener.parsed_key.fields
        query = {"$and": [{path: {"$exists": True}} for path in fields] + [decoded(listener.where)]}
        table = database[listener.table].with_options(codec_options=RAW)
        rows: list[bytes] = []
        size = 0
        with reaching(), table.find(query, dict.fromkeys(fields, 1), sort=[("_id", -1)], limit=ROWS) as cursor:
            document: RawBSONDocument
            for document in cursor:
                size += len(document.raw)
                if rows and size > BYTES:
                    break
                rows.append(bytes(document.raw))
        found[name] = rows
    return found
