"""Finds the rows of a table by their `_id`. The replies stay raw: row_reader.py decodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from components.raw_value import RAW, among, equals, fields
from daemon.store.rows.table_kind import TableKind


class RowFinder:
    """Finds the rows of one table."""

    def __init__(self, table: Collection[dict[str, Any]]) -> None:
        self._table = table
        self._kind = TableKind(table)

    def by_id(
        self,
        session: ClientSession,
        keys: Sequence[Any],
        conditions: Sequence[Mapping[str, Any]],
        projection: Mapping[str, Any],
        concern: dict[str, Any],
        max_bytes: int,
    ) -> tuple[list[RawBSONDocument], Timestamp, bool]:
        """Finds the rows with these keys that meet the conditions: by one command, or by one for each key if the table
        has no index for a list.
        """
        if not keys or not self._kind.clustered():
            query = {"$and": [{"_id": among(keys)}, *conditions]}
            return self._find(session, query, projection, concern, len(keys), max_bytes)
        replies: list[RawBSONDocument] = []
        for key in keys:
            query = {"$and": [{"_id": equals(key)}, *conditions]}
            reply, at, _ = self._find(session, query, projection, concern, 1, max_bytes)
            replies += reply
            if concern.get("level") == "snapshot":
                concern = {"level": "snapshot", "atClusterTime": at}
            if sum(len(each.raw) for each in replies) >= max_bytes:
                return replies, at, key is keys[-1]
        return replies, at, True

    def _find(
        self,
        session: ClientSession,
        query: Mapping[str, Any],
        projection: Mapping[str, Any],
        concern: Mapping[str, Any],
        expected: int,
        max_bytes: int,
    ) -> tuple[list[RawBSONDocument], Timestamp, bool]:
        """The raw replies with the documents, the cluster time of their snapshot, and whether they are complete."""
        database = self._table.database
        command = {
            "find": self._table.name,
            "filter": query,
            "projection": projection,
            "batchSize": expected + 1,  # one more than can come: the cursor closes with the first reply
        }
        if concern:  # in a transaction it is that of the transaction
            command["readConcern"] = concern
        reply = database.command(command, session=session, codec_options=RAW)
        cursor = fields(reply["cursor"].raw)
        # A collection that does not exist has no rows and no snapshot.
        at = cursor["atClusterTime"].value() if "atClusterTime" in cursor else reply["operationTime"]
        replies = [reply]
        while identifier := cursor["id"].value():
            # The server cuts a reply at 16 MB.
            if sum(len(each.raw) for each in replies) >= max_bytes:
                database.command({"killCursors": self._table.name, "cursors": [identifier]}, session=session)
                return replies, at, False
            more = {"getMore": identifier, "collection": self._table.name}
            replies.append(database.command(more, session=session, codec_options=RAW))
            cursor = fields(replies[-1]["cursor"].raw)
        return replies, at, True
