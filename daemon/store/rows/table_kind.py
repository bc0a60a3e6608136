"""What kind of collection a table is: whether it can be served, and how its rows are found by `_id`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from pymongo.collection import Collection

ASK_SECONDS: Final = 60.0

CANNOT_BE_SERVED: Final = {
    "view": "it is a view, and a view has no rows of its own: name the collection that it reads",
    "timeseries": "it is a time series collection, and MongoDB has no change stream of those",
    "capped": "it is a capped collection, and MongoDB deletes its rows or refuses that they grow by an output",
}


class TableKind:
    """What MongoDB says of a collection, asked again after a while: somebody may drop it and make another."""

    def __init__(self, table: Collection[dict[str, Any]]) -> None:
        self._table = table
        self._asked = -ASK_SECONDS
        self._clustered = False

    def clustered(self) -> bool:
        """Whether the rows lie in the order of `_id` and there is no index: MongoDB 6 then reads the whole collection
        for a list of `_id`s, and finds a single one at once.
        """
        if time.monotonic() - self._asked >= ASK_SECONDS:
            self._clustered = "clusteredIndex" in _about(self._table).get("options", {})
            self._asked = time.monotonic()
        return self._clustered


def refusal(table: Collection[dict[str, Any]]) -> str | None:
    """Why this collection cannot be served; None if it can, or does not exist yet."""
    about = _about(table)
    kind = "capped" if about.get("options", {}).get("capped") else str(about.get("type"))
    reason = CANNOT_BE_SERVED.get(kind)
    return None if reason is None else f"{table.name!r} cannot be served: {reason}"


def _about(table: Collection[dict[str, Any]]) -> Mapping[str, Any]:
    """What `listCollections` says of it; empty if it does not exist."""
    with table.database.list_collections(filter={"name": table.name}) as found:
        return next(found, {})
