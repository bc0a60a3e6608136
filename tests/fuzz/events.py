"""Change events and rows of any shape: what the stream and the reader of rows make of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bson
from bson import Timestamp
from bson.raw_bson import RawBSONDocument
from fuzz.target import BSON, Target
from hypothesis import strategies as st

from components.raw_value import RawValue, document, key_of
from daemon.listeners import change_stream, event_cursor
from daemon.logs.text import row_id, row_key, shown_id
from daemon.store import names
from daemon.store.rows.row_reader import RowReader, keys

SUBSCRIPTION = change_stream.Subscription("s", ("rows",))
UNDECODABLE = (
    RawValue(b"\x02\x03\x00\x00\x00\xff\xfe\x00"),  # text that is not UTF-8
    RawValue(b"\x05\x06\x00\x00\x00\x02\x63\x00\x00\x00ab"),  # a binary with a wrong inner length
    RawValue(b"\x0e\x02\x00\x00\x00s\x00"),  # a symbol
    RawValue(b"\x06"),  # undefined
    RawValue(b"\x09" + struct.pack("<q", 1 << 62)),
)


@contextmanager
def target(_folder: Path) -> Iterator[Target]:
    """Rows with any values in the key fields and in the output, and events with any key."""
    value = BSON | st.sampled_from(UNDECODABLE)
    row = st.dictionaries(st.sampled_from(["_id", "x", "m", "_outputs", "row", "reload"]), value, max_size=5)
    yield Target(st.lists(row, min_size=1, max_size=3), _check)


def _check(rows: list[dict[str, Any]]) -> None:
    documents = [document({}, {"_id": 1, **row}) for row in rows]
    batch = RawValue(b"\x04" + document({}, {str(n): _raw(each) for n, each in enumerate(documents)}).raw)
    reply = RawBSONDocument(document({}, {"cursor": _raw(document({"id": 0}, {"firstBatch": batch}))}).raw)
    reader = RowReader("L", ("x", "m.n"))
    assert len(list(reader.rows(reply))) == len(list(reader.seen(reply))) == len(rows)
    for row in rows:
        key = key_of(_raw(document({}, {**row, "service": "s", "listener": "L"})))
        request = {"operationType": "insert", "documentKey": {"_id": key}, "ns": {"coll": names.REQUESTS}}
        list(change_stream._told([request], SUBSCRIPTION, Timestamp(1, 1)))
    for key in keys(reply):
        name = row_id(key)
        assert name.isprintable() or not any(ord(char) < 32 for char in name)
        row_key(name)
        bson.encode({"": str(shown_id(key))})
    events = [
        document({"operationType": "insert", "clusterTime": Timestamp(1, 1)}, {"documentKey": _raw(each), **row})
        for each, row in zip(documents, rows, strict=True)
    ]
    array = RawValue(b"\x04" + document({}, {str(n): _raw(each) for n, each in enumerate(events)}).raw)
    taken = event_cursor._events(array)
    assert len(taken) == len(rows)


def _raw(found: RawBSONDocument) -> RawValue:
    return RawValue(b"\x03" + found.raw)
