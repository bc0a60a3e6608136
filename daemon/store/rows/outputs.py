"""The rows of one listener: the snapshot that a batch is read at, and the guarded writes of its outputs.

The daemon's promise depends on this file. Its rules have the names of docs/architecture.md:

- R1   a write's filter holds the output's `asof` as the snapshot saw it, or its absence
- R1b  a write that matched nothing is reported, so that the row is judged again; R1c not before that write's time
- R2   the filter holds `where` and the existence of the key fields
- R3a  a batch is not read at a snapshot before its newest event (`after`)
- R5   a current output is touched: only its `asof` moves; one with neither value nor error is not current
- R8   a row that does not match loses its output; R8b by a write whose filter holds `asof` as seen

A batch's writes take the first of three ways that works; each keeps the same rules, and lands only what the next would.

1. One transaction that begins at the batch's own snapshot: no guard and no read, as any later change is a conflict.
   Rows that change all the time begin with the second way, apart from the others.
2. Transactions of `GUARDED_ROWS` rows: each reads the guards at a snapshot of its own, and updates the rows that hold.
3. One unordered bulk, with the guard in each update's filter: the slowest for the server, but a row alone decides for
   itself. It is also the way of a few rows, for which it is a single command. If a client's open transaction on one of
   the rows keeps it waiting, each row has a transaction of its own, and that one is judged again.

Writes are plain `$set` and `$unset`: an update by pipeline can appear in the stream as a `replace`, which would pass
its filter of the daemon's own writes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from bson.timestamp import Timestamp
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import ExecutionTimeout, OperationFailure, PyMongoError

from components.raw_value import RAW, equals, identity
from daemon.handlers.predict.records import MISSING, Row, Seen, Snapshot, Write, Written, joined
from daemon.store.rows import raw_updates
from daemon.store.rows.row_finder import RowFinder
from daemon.store.rows.row_reader import SEEN_PARTS, RowReader, projection
from daemon.store.rows.row_reader import keys as row_keys
from daemon.store.rows.table_kind import refusal
from daemon.store.rows.transactions import Aborted, ConflictShare, Transactions, Update

# Codes of errors that are not about the row: full disk (8, 14031), no right, blocked writes (371), failover, overload,
# another kind of collection (72, 166). Every other error is about the row itself (a validator, 16 MB, a unique index),
# and a retry would not help.
WAITED_OUT: Final = frozenset(
    {6, 7, 8, 13, 18, 24, 46, 50, 64, 72, 89, 91, 112, 133, 134, 146, 166, 189, 202, 246, 262, 365, 371}
    | {8000, 9001, 10107, 11600, 11601, 11602, 13435, 13436, 14031}
)
WRITE_CONFLICT, OUT_OF_TIME = 112, 50
ALL: Final = 1 << 62
KNOWN_GOOD_MS: Final = 2_000
SAMPLED: Final = 64
FEW: Final = 8
"""Fewer rows than these are written by one bulk: a transaction takes a second round trip. An error is written by a
transaction, whose event the stream drops, because that of an error that somebody else writes must come.
"""

BULK_MS: Final = 2_000
"""A bulk takes milliseconds, unless it waits for a row that a client's open transaction has changed: up to a minute."""

GUARDED_ROWS: Final = 64
"""The rows of a transaction that reads the guards. Smaller ones seldom conflict, and hold up other writers less."""

ROWS: Final = 256
"""The rows of a transaction at the batch's snapshot: it holds up other writers of them."""

RESTLESS_SECONDS: Final = 1
"""A row whose output is of a snapshot so shortly before changes all the time, and is likely to change again before the
next one is written.
"""


class Outputs:
    """The outputs of one listener in its table.

    `paths` are those of the key fields, `where` is the listener's filter. All errors of pymongo pass through: the
    caller retries. That is safe, because the read-back finds a write that was applied already.
    """

    def __init__(
        self, table: Collection[dict[str, Any]], listener: str, paths: Sequence[str], where: Mapping[str, Any]
    ) -> None:
        self._table = table
        self._path = f"_outputs.{listener}"
        self._finder = RowFinder(table)
        self._rows = RowReader(listener, paths)
        self._matches: list[Mapping[str, Any]] = [{field: {"$exists": True}} for field in paths]
        self._where = where
        if where:
            self._matches.append(where)
        self._stray_projection = {f"{self._path}.{part}": 1 for part in SEEN_PARTS}
        self._projection = {**projection(paths), **self._stray_projection}
        self._transactions = Transactions(table)
        self.sessions = self._transactions.sessions
        self._at_snapshot, self._with_guards = ConflictShare(), ConflictShare()

    # ---- reading --------------------------------------------------------------------------------------------------

    def read(self, keys: Sequence[Any], after: Timestamp | None, max_bytes: int) -> Snapshot:
        """Reads the rows at one snapshot, not older than `after`. Stops past `max_bytes` of rows; `unread` are the
        rest. There are none if the table has become one that cannot be served: its rows went with the one before.
        """
        try:
            return self._read(keys, after, max_bytes)
        except OperationFailure:
            if refusal(self._table) is None:
                raise
            return Snapshot(after or Timestamp(0, 0), (), (), ())

    def told(self, post_image: Mapping[str, Any], at: Timestamp) -> Snapshot | None:
        """What a read of one row at this time would find, if it was then as told; None if only MongoDB can say: the row
        has outputs, or the listener a filter.
        """
        row = None if self._where or "_outputs" in post_image else self._rows.whole(post_image)
        return None if row is None else Snapshot(at, (row,), (), ())

    def _read(self, keys: Sequence[Any], after: Timestamp | None, max_bytes: int) -> Snapshot:
        concern: dict[str, Any] = {"level": "snapshot"}
        if after is not None:
            concern["afterClusterTime"] = after
        with self._table.database.client.start_session(causal_consistency=False) as session:
            found, at, whole = self._finder.by_id(session, keys, self._matches, self._projection, concern, max_bytes)
            rows = self._hollowed(session, [row for batch in found for row in self._rows.rows(batch)], at)
            names = {row.name for row in rows}
            rest: list[Any] = []
            if len(names) < len(keys):
                rest = [key for key in keys if identity(key) not in names]
            if not whole:
                return Snapshot(at, rows, (), tuple(rest))
            strays: tuple[tuple[Any, Seen], ...] = ()
            if rest:
                concern = {"level": "snapshot", "atClusterTime": at}
                present = [{self._path: {"$exists": True}}]
                found, _, _ = self._finder.by_id(session, rest, present, self._stray_projection, concern, ALL)
                # By the table's collation MongoDB may find a row by another `_id`.
                seen = (pair for batch in found for pair in self._rows.seen(batch))
                strays = tuple((key, output) for key, output in seen if identity(key) not in names)
            return Snapshot(at, rows, strays, ())

    def _hollowed(self, session: ClientSession, rows: Sequence[Row], at: Timestamp) -> tuple[Row, ...]:
        """The rows. If an output has the hash of its row's input and neither a value nor an error, somebody else has
        written it: the row is read as if the hash were missing.
        """
        current = [row.key for row in rows if row.seen.input == row.input and not row.seen.error]
        if not current:
            return tuple(rows)
        concern = {"level": "snapshot", "atClusterTime": at}
        empty = [{f"{self._path}.value": {"$exists": False}}]
        found, _, _ = self._finder.by_id(session, current, empty, {"_id": 1}, concern, ALL)
        hollow = {identity(key) for batch in found for key in row_keys(batch)}
        return tuple(replace(row, seen=replace(row.seen, input=None)) if row.name in hollow else row for row in rows)

    # ---- writing --------------------------------------------------------------------------------------------------

    def known_good(self, keys: Sequence[Any], rows: int, max_bytes: int) -> Snapshot | None:
        """These rows, or if `keys` is empty a few that have an output. None if there are none, or MongoDB does not
        answer soon.
        """
        try:
            keys = keys or self._some({f"{self._path}.value": {"$exists": True}}, rows)
            return self.read(keys, None, max_bytes) if keys else None
        except PyMongoError:
            return None

    def unjudged(self, generation: int, rows: int) -> list[Any]:
        """The keys of some rows that have no output of this generation, at random if there are many of them; empty if
        none are found soon.
        """
        query = {"$and": [{f"{self._path}.generation": {"$ne": generation}}, *self._matches]}
        some = [{"$sample": {"size": SAMPLED}}, {"$match": query}, {"$limit": rows}, {"$project": {"_id": 1}}]
        try:
            command = {"aggregate": self._table.name, "pipeline": some, "cursor": {}, "maxTimeMS": KNOWN_GOOD_MS}
            return row_keys(self._table.database.command(command, codec_options=RAW)) or self._some(query, rows)
        except PyMongoError:
            return []

    def _some(self, query: Mapping[str, Any], rows: int) -> list[Any]:
        only = {"filter": query, "projection": {"_id": 1}, "limit": rows, "maxTimeMS": KNOWN_GOOD_MS}
        return row_keys(self._table.database.command({"find": self._table.name, **only}, codec_options=RAW))

    def write(self, writes: Sequence[Write]) -> Written:
        """Makes the writes, all of one snapshot, and finds those that matched nothing. If the table has become one
        that cannot be served, it does nothing.
        """
        try:
            written = joined(self._write(writes[begin : begin + ROWS]) for begin in range(0, len(writes), ROWS))
        except OperationFailure:
            if refusal(self._table) is None:
                raise
            return Written(frozenset(), {}, None)
        if written.refused and refusal(self._table) is not None:
            return Written(written.missed, {}, written.time)
        return written

    def _write(self, writes: Sequence[Write]) -> Written:
        restless = [write for write in writes if _is_restless(write)]
        if len(writes) >= FEW and 0 < len(restless) < len(writes):  # apart: one conflict would be that of all
            calm = [write for write in writes if not _is_restless(write)]
            return joined((self._together(calm, at_snapshot=True), self._together(restless, at_snapshot=False)))
        return self._together(writes, at_snapshot=True)

    def _together(self, writes: Sequence[Write], *, at_snapshot: bool) -> Written:
        if len(writes) < FEW and not any("error" in (w.output or ()) for w in writes):
            return self._bulk(writes)
        if at_snapshot and self._at_snapshot.worth_trying():
            try:
                time = self._transactions.at(writes[0].asof, [self._update(w, guarded=False) for w in writes])
            except Aborted as aborted:
                self._at_snapshot.note(conflict=True)
                if aborted.row:
                    return self._bulk(writes)
            else:
                self._at_snapshot.note(conflict=False)
                return Written(frozenset(), {}, time)
        parts = (writes[begin : begin + GUARDED_ROWS] for begin in range(0, len(writes), GUARDED_ROWS))
        return joined(self._guarded(part) for part in parts)

    def _guarded(self, writes: Sequence[Write]) -> Written:
        """Makes the writes whose guards hold in one transaction, or all by a bulk if that is aborted."""
        if self._with_guards.worth_trying():
            try:
                written = self._in_transaction(writes)
            except Aborted:
                self._with_guards.note(conflict=True)
            else:
                self._with_guards.note(conflict=False)
                return written
        return self._bulk(writes)

    def _in_transaction(self, writes: Sequence[Write]) -> Written:
        """Makes the writes whose guards hold in one transaction; raises Aborted."""
        missed: set[Hashable] = set()

        def choose(session: ClientSession) -> list[Update]:
            holds, landed = self._compared(writes, session)
            missed.update(w.name for w in writes if w.name not in holds | landed)
            return [self._update(w, guarded=False) for w in writes if w.name in holds]

        time = self._transactions.after(writes[0].asof, choose)
        return Written(frozenset(missed), {}, time)

    def _apart(self, write: Write) -> Written:
        """Makes one write in a transaction, which does not wait for another one: the row is then missed."""
        try:
            return self._in_transaction([write])
        except Aborted as aborted:
            if isinstance(cause := aborted.__cause__, OperationFailure) and cause.code in WAITED_OUT - {WRITE_CONFLICT}:
                raise cause from None  # no row can be written: the table is locked, for example
            if aborted.row:
                return self._bulk([write], apart=True)
            return Written(frozenset({write.name}), {}, None)

    def _bulk(self, writes: Sequence[Write], *, apart: bool = False) -> Written:
        """Sends the writes as one unordered bulk, each with its guard. If it waits for a row that a client's open
        transaction has changed, each row is written apart; one that is so already is missed.
        """
        with self._table.database.client.start_session(causal_consistency=True) as session:
            try:
                answer = self._sent(writes, session)
            except ExecutionTimeout:
                if apart:
                    return Written(frozenset(write.name for write in writes), {}, None)
                return joined(map(self._apart, writes))
            refused: dict[Hashable, str] = {}
            for index, code, reason in answer.refused:
                if code in WAITED_OUT:
                    raise OperationFailure(reason, code)  # the bulk is sent again; a repeated write changes nothing
                refused[writes[index].name] = f"MongoDB refuses the write: {reason} (code {code})"
            missed: frozenset[Hashable] = frozenset()
            if answer.matched < len(writes) - len(refused):
                # A bulk reports only how many matched, not which: a read of the rows finds these.
                rest = [w for w in writes if w.name not in refused]
                now = self._outputs_of(rest, (), session)
                missed = frozenset(w.name for w in rest) - self._landed(rest, now)
                self._rows.note_odd(name for w in rest if (name := w.name) in missed and now.get(name) == w.seen)
            return Written(missed, refused, session.operation_time)

    def _sent(self, writes: Sequence[Write], session: ClientSession) -> raw_updates.Answer:
        """Sends the updates. Raises ExecutionTimeout if a row keeps them waiting."""
        # The driver's own bulk costs three times as much, and raises on an `_id` that it cannot decode.
        statements = [{"q": update.query, "u": update.change} for update in map(self._update, writes)]
        try:
            return raw_updates.send(self._table, "update", statements, session, maxTimeMS=BULK_MS)
        except OperationFailure as error:
            if isinstance(error, ExecutionTimeout) or error.code != OUT_OF_TIME:
                raise
            # All have run, and it is a majority that keeps them waiting. It may take longer than a row may.
            return raw_updates.send(self._table, "update", statements, session)

    def _update(self, write: Write, *, guarded: bool = True) -> Update:
        """The update of one row; without the guard in its filter if a transaction guards it."""
        query: dict[str, Any] = {"_id": equals(write.key)}
        if guarded and write.kind == "unset":
            query |= self._as_seen(write.seen)  # R8b
        elif guarded:
            query |= {**self._as_seen(write.seen), "$and": self._matches}  # R1, R2
        if write.kind == "unset":
            return Update(query, {"$unset": {self._path: ""}})
        if write.kind == "touch":
            return Update(query, {"$set": {f"{self._path}.asof": write.asof}})
        return Update(query, {"$set": {self._path: write.output}})

    def _as_seen(self, seen: Seen) -> Mapping[str, Any]:
        if seen.asof is MISSING:  # or the value at the path is not predictd's
            return {"$expr": {"$ne": [{"$type": f"${self._path}.asof"}, "timestamp"]}}
        return {f"{self._path}.asof": seen.asof}

    def _compared(self, writes: Sequence[Write], session: ClientSession) -> tuple[set[Hashable], set[Hashable]]:
        """Reads the rows in the session's transaction. Returns those whose guard holds, and those whose write has
        landed before (its answer was lost).
        """
        sets = [w for w in writes if w.kind != "unset"]
        unsets = [w for w in writes if w.kind == "unset"]
        now = self._outputs_of(sets, self._matches, session) | self._outputs_of(unsets, (), session)  # R2
        landed = self._landed(writes, now)
        names = {w.name: w for w in writes}
        holds = {name for name, seen in now.items() if name in names and seen.asof == names[name].seen.asof}  # R1, R8b
        return holds - landed, landed

    def _outputs_of(
        self, writes: Sequence[Write], conditions: Sequence[Mapping[str, Any]], session: ClientSession
    ) -> dict[Hashable, Seen]:
        """The outputs that the rows of these writes have now, or at the snapshot of the session's transaction."""
        if not writes:
            return {}
        concern = {} if session.in_transaction else {"afterClusterTime": session.operation_time}
        replies, _, _ = self._finder.by_id(
            session, [w.key for w in writes], conditions, self._stray_projection, concern, ALL
        )
        return {identity(key): seen for reply in replies for key, seen in self._rows.seen(reply)}

    @staticmethod
    def _landed(writes: Sequence[Write], now: Mapping[Hashable, Seen]) -> set[Hashable]:
        """The rows that hold what their write would make of them."""
        landed = set()
        for w in writes:
            seen = now.get(w.name)
            if w.kind == "unset":
                done = seen is None or not seen.present
            else:
                done = seen is not None and (seen.asof, seen.generation) == (w.asof, w.generation)
            if done:
                landed.add(w.name)
        return landed


def _is_restless(write: Write) -> bool:
    before = write.seen.asof
    return before is not MISSING and write.asof.time - before.time <= RESTLESS_SECONDS
