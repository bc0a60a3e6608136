"""The rows of one listener: the snapshot that a batch is read at, and the guarded write of what came of it.

The promise rests on this file. Its rules carry the names that they have in the check of the protocol
(docs/architecture.md):

- R1   a write's filter holds the output's `asof` as the snapshot saw it, or its absence
- R1b  a write that matched nothing is told, so that the row is judged anew; R1c not before that write's time
- R2   the filter holds `where` and the existence of the key fields
- R3a  a batch is read not before its newest event (`after`)
- R5   a current output is touched: only its `asof` moves
- R8   a row that does not match loses its output; R8b by a write whose filter holds `asof` as seen

Writes are plain `$set` and `$unset`: an update by pipeline can surface as a `replace`, which would defeat the stream's
own-write filter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import bson
from bson.timestamp import Timestamp
from pymongo import UpdateOne
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from daemon.handlers.predict.dirty_keys import identity
from daemon.handlers.predict.records import MISSING, Row, Seen, Snapshot, Write, Written

# What a write may meet that is not about its row: full disk, no right, failover, pressure. Whatever else comes is the
# row's own (a validator, 16 MB, a unique index), and asking again would not help.
WAITED_OUT: Final = frozenset(
    {6, 7, 13, 18, 24, 46, 50, 64, 89, 91, 112, 133, 134, 146, 189, 202, 246, 262, 365}
    | {8000, 9001, 10107, 11600, 11601, 11602, 13435, 13436, 14031}
)


class Outputs:
    """The outputs of one listener in its table.

    `fields` are the key fields' paths, `where` the listener's filter. All errors of pymongo pass through: the caller
    retries, which is safe, since a write that had landed is found by the read-back.
    """

    def __init__(
        self, table: Collection[dict[str, Any]], listener: str, fields: Sequence[str], where: Mapping[str, Any]
    ) -> None:
        self._table = table
        self._listener = listener
        self._path = f"_outputs.{listener}"
        self._fields = tuple(fields)
        self._matches: list[Mapping[str, Any]] = [{field: {"$exists": True}} for field in self._fields]
        if where:
            self._matches.append(where)
        seen = {f"{self._path}.{part}": 1 for part in ("asof", "generation", "input", "error")}
        self._stray_projection = seen
        self._projection = {**dict.fromkeys(self._fields, 1), **seen}

    # ---- reading --------------------------------------------------------------------------------------------------

    def read(self, keys: Sequence[Any], after: Timestamp | None, max_bytes: int) -> Snapshot:
        """Reads the rows at one snapshot, not older than `after`; stops past `max_bytes` of rows and says what is
        left.
        """
        concern: dict[str, Any] = {"level": "snapshot"}
        if after is not None:
            concern["afterClusterTime"] = after
        with self._table.database.client.start_session(causal_consistency=False) as session:
            matching = {"$and": [{"_id": {"$in": list(keys)}}, *self._matches]}
            documents, at, whole = self._find(session, matching, self._projection, concern, len(keys), max_bytes)
            rows = tuple(self._row(document) for document in documents)
            found = {identity(row.key) for row in rows}
            rest = [key for key in keys if identity(key) not in found]
            if not whole:
                return Snapshot(at, rows, (), tuple(rest))
            strays: tuple[tuple[Any, Seen], ...] = ()
            if rest:
                documents, _, _ = self._find(
                    session,
                    {"_id": {"$in": rest}, self._path: {"$exists": True}},
                    self._stray_projection,
                    {"level": "snapshot", "atClusterTime": at},
                    len(rest),
                    max_bytes,
                )
                # 1 and 1.0 are one `_id` to MongoDB: a row may come under the other's name.
                others = (each for each in documents if identity(each["_id"]) not in found)
                strays = tuple((document["_id"], self._seen(document)) for document in others)
            return Snapshot(at, rows, strays, ())

    def _find(
        self,
        session: ClientSession,
        query: Mapping[str, Any],
        projection: Mapping[str, Any],
        concern: Mapping[str, Any],
        expected: int,
        max_bytes: int,
    ) -> tuple[list[dict[str, Any]], Timestamp, bool]:
        """Documents, the cluster time that they were read at, and whether these are all."""
        database = self._table.database
        command = {
            "find": self._table.name,
            "filter": query,
            "projection": projection,
            "batchSize": expected + 1,  # one more than can come: the cursor closes with the first reply
            "readConcern": concern,
        }
        reply = database.command(command, session=session, codec_options=self._table.codec_options)
        cursor = reply["cursor"]
        # A collection that does not exist has no snapshot either, and no rows.
        documents, at = cursor["firstBatch"], cursor.get("atClusterTime", reply["operationTime"])
        while cursor["id"]:
            # A reply is cut at 16 MB by the server, so rows are large here and measuring them costs little beside them.
            if sum(len(bson.encode(document)) for document in documents) >= max_bytes:
                database.command({"killCursors": self._table.name, "cursors": [cursor["id"]]}, session=session)
                return documents, at, False
            more = {"getMore": cursor["id"], "collection": self._table.name}
            cursor = database.command(more, session=session, codec_options=self._table.codec_options)["cursor"]
            documents += cursor["nextBatch"]
        return documents, at, True

    def _row(self, document: dict[str, Any]) -> Row:
        values = tuple(value_at(document, field) for field in self._fields)
        encoded = bson.encode({"": values[0] if len(values) == 1 else list(values)})
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        return Row(document["_id"], values, digest, self._seen(document))

    def _seen(self, document: Mapping[str, Any]) -> Seen:
        outputs = document.get("_outputs")
        output = outputs.get(self._listener) if isinstance(outputs, dict) else None
        if not isinstance(output, dict):
            return Seen()
        generation, asof = output.get("generation"), output.get("asof")
        return Seen(
            # Only a timestamp is ours. Anything else a client wrote, and not every BSON value comes back from Python as
            # it went.
            asof=asof if isinstance(asof, Timestamp) else MISSING,
            generation=generation if isinstance(generation, int) else 0,
            input=output.get("input"),
            error="error" in output,
            present=True,
        )

    # ---- writing --------------------------------------------------------------------------------------------------

    def write(self, writes: Sequence[Write]) -> Written:
        """Sends the writes as one unordered bulk and finds out which of them matched nothing."""
        refused: dict[Hashable, str] = {}
        with self._table.database.client.start_session(causal_consistency=True) as session:
            try:
                result = self._table.bulk_write([self._update(w) for w in writes], ordered=False, session=session)
                matched = result.matched_count
            except BulkWriteError as error:
                failed = error.details["writeErrors"]
                if error.details.get("writeConcernErrors") or any(e["code"] in WAITED_OUT for e in failed):
                    raise  # sent again as a whole, which changes nothing where it has landed
                refused = {
                    identity(writes[e["index"]].key): f"MongoDB refuses the write: {e['errmsg']} (code {e['code']})"
                    for e in failed
                }
                matched = error.details["nMatched"]
            missed: frozenset[Hashable] = frozenset()
            if matched < len(writes) - len(refused):
                # A bulk tells only how many matched, not which: what each row holds now tells that.
                missed = frozenset(self._missed([w for w in writes if identity(w.key) not in refused], session))
            return Written(missed, refused, session.operation_time)

    def _update(self, write: Write) -> UpdateOne:
        if write.kind == "unset":
            return UpdateOne({"_id": write.key, **self._as_seen(write.seen)}, {"$unset": {self._path: ""}})  # R8b
        query = {"_id": write.key, **self._as_seen(write.seen), "$and": self._matches}  # R1, R2
        if write.kind == "touch":
            return UpdateOne(query, {"$set": {f"{self._path}.asof": write.asof}})
        return UpdateOne(query, {"$set": {self._path: write.output}})

    def _as_seen(self, seen: Seen) -> Mapping[str, Any]:
        if seen.asof is MISSING:  # or something that is not ours, in whatever lies at the path
            return {"$expr": {"$ne": [{"$type": f"${self._path}.asof"}, "timestamp"]}}
        return {f"{self._path}.asof": seen.asof}

    def _missed(self, writes: Sequence[Write], session: ClientSession) -> list[Hashable]:
        now = {
            identity(document["_id"]): self._seen(document)
            for document in self._table.find(
                {"_id": {"$in": [w.key for w in writes]}}, self._stray_projection, session=session
            )
        }
        missed = []
        for w in writes:
            seen = now.get(identity(w.key))
            if w.kind == "unset":
                landed = seen is None or not seen.present
            else:
                landed = seen is not None and (seen.asof, seen.generation) == (w.asof, w.generation)
            if not landed:
                missed.append(identity(w.key))
        return missed


def value_at(document: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; a path that leads through an array has no single value and gives the array itself."""
    value: Any = document
    for part in path.split("."):
        if not isinstance(value, dict):
            return value
        value = value.get(part)
    return value
