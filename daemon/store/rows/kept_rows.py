"""Rows kept as they were: those that judged a promotion, so that later candidates are measured on them too, and those
of pinned datasets.

    _predictd.datasets: {_id: {of: KEY, part: "contents"}, name}   the file of a pinned dataset
    _predictd.datasets.files, .chunks   a GridFS bucket; a file is named by the SHA-256 of its content

A file holds the `_id`s and the fields of a key, one BSON document after the other. Equal contents are stored once. Who
may only insert rows cannot change them; who may write predictd's collections can delete them, but a changed file is
noticed. `Versions` names the files that count.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import bson
import structlog
from bson.errors import BSONError
from gridfs import GridFSBucket, NoFile
from gridfs.errors import CorruptGridFile
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from components.raw_value import identity
from daemon.store import names
from daemon.store.connection import ROW_CODEC
from daemon.store.rows.datasets import Fields, RowDecoder
from daemon.store.rows.row_reader import projection

log = structlog.get_logger(__name__)

ROWS: Final = 2000
"""Rows that are kept of one dataset: the chance in a share of 2,000 rows is a hundredth."""

BYTES: Final = 64 * 1024 * 1024
FETCH_ROWS: Final = 100
YOUNG_SECONDS: Final = 24 * 3600


class KeptExamples:
    """Kept rows as `components.examples.Examples`."""

    def __init__(self, table: str, fields: Fields, rows: Sequence[Mapping[str, Any]]) -> None:
        self._decoded = RowDecoder(table, fields)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...] | None]:
        """The values of the rows at these places; None for one that has no value in a field."""
        return [self._decoded(self._rows[place]) for place in places]


def keep(database: Database[dict[str, Any]], table: str, fields: Iterable[str], ids: Sequence[Any]) -> str | None:
    """Keeps the present contents of these rows, at most `ROWS` of them and `BYTES`, chosen at random but the same ones
    of the same rows; the file's name, None if no row is there.
    """
    rows, _ = _read(database, table, fields, ids, ROWS)
    return _store(database, rows) if rows else None


def contents(
    database: Database[dict[str, Any]], key: str, table: str, fields: Iterable[str], ids: Sequence[Any]
) -> str | None:
    """The file with the contents of a pinned dataset: those that its rows had when it was first asked for. None if
    there are none, or more than `BYTES`: then its rows count with what they hold.
    """
    collection, head = database[names.DATASETS], {"of": key, "part": "contents"}
    found = collection.find_one({"_id": head})
    if found is None:
        rows, whole = _read(database, table, fields, ids, len(ids))
        if not rows or not whole:
            return None
        with suppress(DuplicateKeyError):  # another job was quicker; its contents count
            collection.insert_one({"_id": head, "name": _store(database, rows)})
        found = collection.find_one({"_id": head}) or {}
    return found["name"] if isinstance(found.get("name"), str) else None


def _read(
    database: Database[dict[str, Any]], table: str, fields: Iterable[str], ids: Sequence[Any], most: int
) -> tuple[bytes, bool]:
    """The documents of at most so many rows and `BYTES`, in the order of `ids`; whether these are all."""
    chosen = random.Random(f"kept {len(ids)}").sample(range(len(ids)), min(most, len(ids)))  # noqa: S311 - guards nothing
    rows: list[tuple[int, bytes]] = []
    size = 0
    for start in range(0, len(chosen), FETCH_ROWS):
        places = {identity(ids[place]): place for place in chosen[start : start + FETCH_ROWS]}
        query = {"_id": {"$in": [ids[place] for place in places.values()]}}
        for document in database[table].find(query, projection(fields)):
            row = bson.encode(document, codec_options=ROW_CODEC)
            size += len(row)
            if size > BYTES:
                return b"".join(row for _, row in sorted(rows)), False
            rows.append((places[identity(document["_id"])], row))
    return b"".join(row for _, row in sorted(rows)), size <= BYTES and most >= len(ids)


def kept(database: Database[dict[str, Any]], name: str) -> list[dict[str, Any]] | None:
    """The rows in a file; None if it is missing or damaged."""
    content = _content(database, name)
    if content is None:
        log.warning("rows that judged a promotion are missing or damaged, and are left out", file=name)
        return None
    try:
        return bson.decode_all(content, ROW_CODEC)
    except BSONError:
        return None


def sweep(database: Database[dict[str, Any]], named: Iterable[str]) -> int:
    """Deletes the files older than a day that are not `named`; returns how many."""
    files, bucket = database[f"{names.DATASETS}.files"], GridFSBucket(database, bucket_name=names.DATASETS)
    old = {"$expr": {"$lt": ["$uploadDate", {"$subtract": ["$$NOW", YOUNG_SECONDS * 1000]}]}}
    surplus = [found["_id"] for found in files.find({"filename": {"$nin": list(named)}, **old}, {"_id": 1})]
    for each in surplus:
        with suppress(NoFile):
            bucket.delete(each)
    return len(surplus)


def _store(database: Database[dict[str, Any]], content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    if _content(database, name) is None:
        GridFSBucket(database, bucket_name=names.DATASETS).upload_from_stream(name, content)
    else:  # it counts as young again, until a version names it
        database[f"{names.DATASETS}.files"].update_many({"filename": name}, {"$currentDate": {"uploadDate": True}})
    return name


def _content(database: Database[dict[str, Any]], name: str) -> bytes | None:
    try:
        with GridFSBucket(database, bucket_name=names.DATASETS).open_download_stream_by_name(name) as stored:
            if stored.length > 2 * BYTES:
                return None
            content = bytes(stored.read())
    except (NoFile, CorruptGridFile, TypeError, ValueError, ArithmeticError):  # its document may hold anything
        return None
    return content if hashlib.sha256(content).hexdigest() == name else None
