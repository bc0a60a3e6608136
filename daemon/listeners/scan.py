"""A scan as a source: the `_id`s of a table in pages, in order of `_id` from either end, from behind a given one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from bson.timestamp import Timestamp
from pymongo.collection import Collection

from components.raw_value import RAW, document
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
) -> Iterator[list[Any]]:
    """Yields pages of at most `size` keys, all of the table's; `resumed` goes on behind the `_id` `last`.

    "newest" begins with the highest `_id`, which for ObjectIds are the newest rows.

    Which of them match is not asked here: a page then comes from the index alone, in bounded time, however rare a match
    is.

    Pages are read not before `start`: whatever was there then is in one of them, unless it was deleted since; what
    comes later is the change stream's business. Errors of pymongo pass through, and the caller starts again behind the
    last page.
    """
    operator, direction = ("$gt", 1) if order == "oldest" else ("$lt", -1)
    clustered = TableKind(table).clustered()
    behind, within_type = _behind(operator, last, within_type=clustered) if resumed else {}, clustered and resumed
    while True:
        command = {
            "find": table.name,
            "filter": behind,
            "projection": {"_id": 1},
            "sort": {"_id": direction},
            "limit": size,
            "singleBatch": True,  # a reply is cut at 16 MB: a page of large keys is a shorter one
            "readConcern": {"level": "local", "afterClusterTime": start},
        }
        page = keys(table.database.command(command, codec_options=RAW))
        if page:
            yield page
            last = page[-1]
        elif not within_type:
            return
        within_type = clustered and bool(page)  # behind the last row of a type come those of others
        behind = _behind(operator, last, within_type=within_type)


def _behind(operator: str, last: Any, *, within_type: bool) -> dict[str, Any]:
    if within_type:  # the only condition on a range for which MongoDB 6 does not read a clustered collection whole
        return {"_id": document({}, {operator: last})}
    # $expr compares across BSON types; a plain {_id: {$gt: last}} would pass over every row of another type.
    return {"$expr": {operator: ["$_id", document({}, {"$literal": last})]}}
