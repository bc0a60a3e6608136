"""The rows of a training or a validation: a list of `_id`s, read once at one snapshot, and the rows with these `_id`s.

A job reads its rows many times, in an order of its own, while clients insert and delete. So it pins the list of rows at
its start, and reads their values when it needs them. A row that is deleted by then counts as gone.

    _predictd.datasets: {_id: {of: KEY, part: 0}, ids: [...], parts, run, at}  the pinned rows of a validation's dataset

The rows of a `Dataset(pin=True)` are chosen once and are then the same for every version. KEY is a hash of service,
validation, dataset and query. The list is cut into parts of a size that MongoDB accepts. Each writer writes the first
part last; only one writer succeeds, and its first part names the run whose parts count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import bson
import structlog
from bson import Int64, ObjectId
from bson.timestamp import Timestamp
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from components import images
from components.datatypes import Datatype, datatype, undeclared
from components.errors import DecodeError
from components.extended_json import decoded
from components.raw_value import identity
from daemon.store import names
from daemon.store.connection import ROW_CODEC, make_client, open_database
from daemon.store.registry.components import signature
from daemon.store.rows.row_reader import projection, value_at

log = structlog.get_logger(__name__)

PART_BYTES: Final = 4 * 1024 * 1024
FETCH_ROWS: Final = 2000
NAME_SHOWN: Final = 100

Fields: TypeAlias = Sequence[tuple[str, str | None]]
"""Paths with their datatypes' specs, in a key's order."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """The `_id`s of the matching rows, in the order of `_id`, and the cluster time of the snapshot (None if there is no
    such table). `values` are those of one more field, if asked for.
    """

    ids: Sequence[Any]
    at: Timestamp | None
    values: Sequence[Any] = ()


def pinned(
    database: Database[dict[str, Any]],
    table: str,
    where: Mapping[str, Any],
    fields: Sequence[str],
    limit: int | None = None,
    valued: str | None = None,
) -> Pinned:
    """The first `limit` rows of `table`, at one snapshot, that match `where` (as a declaration stores it) and have all
    of `fields`, and of the field `valued` too, if one is named.
    """
    every = [*fields, *([valued] if valued else [])]
    command = {
        "find": table,
        "filter": _matching(where, every),
        "projection": projection([valued] if valued else []),
        "sort": {"_id": 1},
        **({"limit": limit} if limit else {}),
    }
    rows, at = _read(database, table, command)
    return Pinned([row["_id"] for row in rows], at, [value_at(row, valued) for row in rows] if valued else ())


def sampled(
    database: Database[dict[str, Any]],
    table: str,
    where: Mapping[str, Any],
    fields: Sequence[str],
    size: int,
    seed: int,
) -> Pinned:
    """`size` of the rows that `pinned` finds, chosen by the server: those with the lowest hash of `seed` and `_id`. A
    row that comes or goes changes at most one of them.
    """
    hashed = {"$toHashedIndexKey": {"seed": {"$literal": Int64(seed)}, "_id": "$_id"}}
    pipeline = [
        {"$match": _matching(where, fields)},
        {"$project": {"hash": hashed}},
        {"$sort": {"hash": 1, "_id": 1}},
        {"$limit": size},
        {"$sort": {"_id": 1}},
        {"$project": {"_id": 1}},
    ]
    rows, at = _read(database, table, {"aggregate": table, "pipeline": pipeline, "cursor": {}, "allowDiskUse": True})
    return Pinned([row["_id"] for row in rows], at)


def _matching(where: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    conditions: list[Mapping[str, Any]] = [{field: {"$exists": True}} for field in fields]
    conditions += [decoded(where)] if where else []
    return {"$and": conditions} if conditions else {}


def _read(
    database: Database[dict[str, Any]], table: str, command: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], Timestamp | None]:
    """All rows that a command finds at one snapshot, and its cluster time."""
    with database.client.start_session(causal_consistency=False) as session:
        given = {**command, "readConcern": {"level": "snapshot"}}
        cursor = database.command(given, session=session, codec_options=ROW_CODEC)["cursor"]
        at = cursor.get("atClusterTime")
        rows = list(cursor["firstBatch"])
        while cursor["id"]:
            more = {"getMore": cursor["id"], "collection": table}
            cursor = database.command(more, session=session, codec_options=ROW_CODEC)["cursor"]
            rows += cursor["nextBatch"]
    return rows, at


def kept(
    database: Database[dict[str, Any]],
    service: str,
    validation: str,
    dataset: str,
    query: Mapping[str, Any],
    fields: Sequence[str],
) -> Pinned:
    """The rows of a declared dataset (`query`: table, where, limit, pin, sample, seed): chosen now, or, with `pin`,
    those of the first choice.
    """

    def choose() -> Pinned:
        if query.get("sample"):
            return sampled(database, query["table"], query["where"], fields, query["sample"], query.get("seed", 0))
        return pinned(database, query["table"], query["where"], fields, query["limit"])

    if not query["pin"]:
        return choose()
    key = pin_key(service, validation, dataset, query, fields)
    return _stored(database, key) or _store(database, key, choose())


def pin_key(service: str, validation: str, dataset: str, query: Mapping[str, Any], fields: Sequence[str]) -> str:
    """What a pinned dataset is stored under."""
    return signature([service, validation, dataset, query, list(fields)])


def _stored(database: Database[dict[str, Any]], key: str) -> Pinned | None:
    collection = database[names.DATASETS]
    head = collection.find_one({"_id": {"of": key, "part": 0}})
    if head is None:
        return None
    rest = [collection.find_one({"_id": {"of": key, "part": n, "run": head["run"]}}) for n in range(1, head["parts"])]
    if any(part is None for part in rest):  # they were deleted by hand
        return None
    return Pinned([each for part in (head, *rest) if part is not None for each in part["ids"]], head["at"])


def _store(database: Database[dict[str, Any]], key: str, chosen: Pinned) -> Pinned:
    """Stores a choice; if another process has stored one meanwhile, returns that one. An empty choice is not stored,
    because rows may come later.
    """
    if not chosen.ids:
        return chosen
    collection, run, parts = database[names.DATASETS], ObjectId(), list(_parts(chosen.ids))
    for number, ids in enumerate(parts[1:], 1):
        collection.insert_one({"_id": {"of": key, "part": number, "run": run}, "ids": ids})
    head = {"of": key, "part": 0}
    try:
        collection.insert_one({"_id": head, "ids": parts[0], "parts": len(parts), "run": run, "at": chosen.at})
    except DuplicateKeyError:
        theirs = _stored(database, key)
        if theirs is None:  # the first part of a list whose other parts are gone
            collection.delete_one({"_id": head})
            return _store(database, key, chosen)
        collection.delete_many({"_id": {"$in": [{"of": key, "part": n, "run": run} for n in range(1, len(parts))]}})
        return theirs
    return chosen


def _parts(ids: Sequence[Any]) -> Iterator[list[Any]]:
    part: list[Any] = []
    size = 0
    for each in ids:
        more = len(bson.encode({"": each})) + 8
        if part and size + more > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(each)
        size += more
    yield part


class RowDecoder:
    """Decodes the fields of a table's rows. `fields` are the paths with their datatypes' specs (None: the value as the
    driver decodes it); a path may occur twice. The first value that its datatype cannot decode is logged.
    """

    def __init__(self, table: str, fields: Fields) -> None:
        self._table = table
        self._datatypes: list[tuple[str, Datatype | None]] = [
            (path, datatype(spec) if spec else None) for path, spec in fields
        ]
        self._told = False

    def __call__(self, document: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The values; None if one is absent, null, or cannot be decoded."""
        values = []
        for path, kind in self._datatypes:
            value = value_at(document, path)
            if value is None:  # absent or null: no example
                return None
            try:
                values.append(undeclared(value) if kind is None else kind.decode(value))
            except DecodeError as error:
                if not self._told:
                    self._told = True
                    log.warning(
                        "a row is skipped", table=self._table, row=document["_id"], field=path, reason=str(error)
                    )
                return None
        return tuple(values)


class RowExamples:
    """The decoded rows of a table by their place in `ids`: `components.examples.Examples` over MongoDB.

    `fields` are the key's paths with their datatypes' specs, as for `RowDecoder`. A row counts as gone if it is
    deleted, lacks a field (or holds null in it), or has a value that its datatype cannot decode.

    It can be pickled, and used after a fork: each process opens a client of its own at its first fetch.
    """

    def __init__(self, uri: str, database: str, table: str, fields: Fields, ids: Sequence[Any]) -> None:
        self._uri = uri
        self._database = database
        self._table = table
        self._fields = fields
        self._ids = ids
        self._decoded = RowDecoder(table, self._fields)
        self._client: tuple[int, Database[dict[str, Any]]] | None = None

    def __getstate__(self) -> tuple[Any, ...]:
        return images.settings(), self._uri, self._database, self._table, self._fields, self._ids

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        images.narrow(*state[0])  # a spawned process has the setting of its parent
        self.__init__(*state[1:])  # type: ignore[misc]  # the same arguments

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, place: int) -> str:
        """The `_id` of a row, as text for messages."""
        return repr(self._ids[place])[:NAME_SHOWN]

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...] | None]:
        """For each of these places, the decoded values of the row's key fields, None if the row is gone. Errors of
        pymongo pass through.
        """
        ids = [self._ids[place] for place in places]
        found: dict[Any, tuple[Any, ...] | None] = {}
        paths = projection(dict(self._fields))
        for start in range(0, len(ids), FETCH_ROWS):
            query = {"_id": {"$in": ids[start : start + FETCH_ROWS]}}
            for document in self._open()[self._table].find(query, paths):
                found[identity(document["_id"])] = self._decoded(document)
        return [found.get(identity(each)) for each in ids]

    def close(self) -> None:
        """Closes this process's client; the next fetch opens another."""
        if self._client is not None and self._client[0] == os.getpid():
            self._client[1].client.close()
        self._client = None

    def _open(self) -> Database[dict[str, Any]]:
        # A client cannot be used after a fork: its threads and sockets belong to the parent.
        if self._client is None or self._client[0] != os.getpid():
            client = make_client(self._uri, "predictd job rows", socketTimeoutMS=60_000)
            self._client = (os.getpid(), open_database(client, self._database))
        return self._client[1]
