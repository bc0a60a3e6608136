"""A scan as a source: the `_id`s of a table in pages, in ascending or descending order, optionally after a given
`_id`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from bson.timestamp import Timestamp
from pymongo.collection import Collection

from components.raw_value import RAW, document
from daemon.store.partition import WHOLE, Partition
from daemon.store.rows.row_reader import keys
from daemon.store.rows.table_kind import TableKind

PAGE = 1000

Order = Literal["newest", "oldest"]


def pages(
    table: Collection[dict[str, Any]],
    start: Timestamp,
    last: Any,
    *,
    resumed: bool,
    order: Order = "oldest",
    size: int = PAGE,
    partition: Partition = WHOLE,
) -> Iterator[list[Any]]:
    """Yields all keys of the partition in pages of at most `size`; with `resumed`, those behind the `_id` `last`.

    "newest" begins with the highest `_id`; with ObjectIds that is the newest row.

    The listener's filter is not applied here, so a page needs only the index and bounded time, even if few rows match.

    Pages are not read before `start`: each row that existed then is in one of them, unless it was deleted since. Later
    rows come through the change stream. Errors of pymongo pass through; the caller starts again behind the last page.
    """
    operator, direction = ("$gt", 1) if order == "oldest" else ("$lt", -1)
    clustered = TableKind(table).clustered()
    share = [] if partition == WHOLE else [{"$expr": partition.holds("$_id")}]
    behind, within_type = _behind(operator, last, within_type=clustered) if resumed else {}, clustered and resumed
    while True:
        command = {
            "find": table.name,
            "filter": {"$and": [behind, *share]} if share else behind,
            "projection": {"_id": 1},
            "sort": {"_id": direction},
            "limit": size,
            "singleBatch": True,  # a reply is cut at 16 MB: a page of large keys is shorter
            "readConcern": {"level": "local", "afterClusterTime": start},
        }
        page = keys(table.database.command(command, codec_options=RAW))
        if page:
            yield page
            last = page[-1]
        elif not within_type:
            return
        within_type = clustered and bool(page)  # after the last row of a type come the rows of other types
        behind = _behind(operator, last, within_type=within_type)


def _behind(operator: str, last: Any, *, within_type: bool) -> dict[str, Any]:
    if within_type:  # with any other range condition MongoDB 6 reads a clustered collection whole
        return {"_id": document({}, {operator: last})}
    # $expr compares across BSON types; a plain {_id: {$gt: last}} would skip every row of another type.
    return {"$expr": {operator: ["$_id", document({}, {"$literal": last})]}}
