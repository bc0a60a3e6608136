"""The rows of a rehearsal: a few real rows of a listener, or a made-up one if it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import bson
import numpy as np
from bson.raw_bson import RawBSONDocument
from PIL import Image
from pymongo.errors import ExecutionTimeout

from components.datatypes import datatype
from components.declarations import ListenerDeclaration
from components.extended_json import decoded
from components.raw_value import RAW
from daemon.store.connection import Data

EACH_END: Final = 4
BYTES: Final = 16 * 1024 * 1024
MILLISECONDS: Final = 5000
"""How long MongoDB may look for rows: a filter without an index may match few of many."""


def rows_of(listener: ListenerDeclaration, database: Data, having: Sequence[str] = ()) -> list[bytes]:
    """Return the documents, in BSON, of up to eight rows that match the listener, and have these fields too: those
    inserted last, and first.
    """
    fields = listener.parsed_key.fields
    query = {"$and": [{path: {"$exists": True}} for path in (*fields, *having)] + [decoded(listener.where)]}
    table = database[listener.table].with_options(codec_options=RAW)
    rows: dict[bytes, None] = {}
    size = 0
    for order in (-1, 1):
        found = table.find(query, dict.fromkeys(fields, 1), sort=[("_id", order)], limit=EACH_END)
        try:
            document: RawBSONDocument
            for document in found.max_time_ms(MILLISECONDS):
                size += len(document.raw)
                if rows and size > BYTES:
                    break
                rows[bytes(document.raw)] = None
        except ExecutionTimeout:  # what was found until then is enough
            continue
        finally:
            found.close()
    return list(rows)


def made_up(listener: ListenerDeclaration, fields: Mapping[str, str]) -> list[bytes]:
    """Return one row that has a value of its datatype in each key field; none if a field has no datatype."""
    row: dict[str, Any] = {"_id": "made up"}
    for path in listener.parsed_key.fields:
        if path not in fields:
            return []
        place = row
        *outer, last = path.split(".")
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = _value(fields[path])
    return [bson.encode(row)]


def _value(spec: str) -> Any:
    found = datatype(spec)
    name, _, parameters = found.spec.rstrip("]").partition("[")
    if name in _PLAIN:
        return found.encode(_PLAIN[name])
    if name == "vector":
        return found.encode(np.zeros(int(parameters), "float32"))
    dtype, _, shape = parameters.partition(",")
    return found.encode(np.zeros([int(size) for size in shape.split("x")], dtype))


_PLAIN: Final[Mapping[str, Any]] = {
    "pil_image": Image.new("RGB", (224, 224)),
    "int": 1,
    "float": 1.0,
    "decimal": 1,
    "str": "text",
    "bool": True,
    "bytes": b"bytes",
    "datetime": datetime(2024, 1, 1, tzinfo=UTC),
    "json": {},
}
