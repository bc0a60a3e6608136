"""Tables that a listener has left: it was declared anew on another one, and its outputs and dead letters go.

    the listener's document in `_predictd.components`: {left: [{table, below}]}

`daemon.store.registry.declarations` notes the table in the write that declares the listener anew, so a kill loses
nothing. The supervisor clears it once the workers of before have ended; each output of a generation under `below` goes.
Outputs that the listener has written since, if it is back on that table, are of a higher generation and stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import pymongo
import structlog
from pymongo.database import Database
from pymongo.errors import OperationFailure

from daemon.store import names
from daemon.store.registry.components import Component, LeftTable
from daemon.store.rows.table_kind import refusal

log = structlog.get_logger(__name__)

LONGEST_SECONDS: Final = 3600.0
"""For one update of a whole table, which the client's own limit for an operation would cut off."""


def without(database: Database[dict[str, Any]], service: str, listener: str, table: str, below: int | None) -> None:
    """Removes a listener's outputs from a table, and its dead letters: all, or those of generations under `below`."""
    output = f"_outputs.{listener}"
    older: Mapping[str, Any] = {} if below is None else {"$not": {"$gte": below}}
    with pymongo.timeout(LONGEST_SECONDS):
        database[table].update_many(
            {output: {"$exists": True}, **({f"{output}.generation": older} if older else {})}, {"$unset": {output: ""}}
        )
        database[names.DEAD_LETTERS].delete_many(
            {"_id.service": service, "_id.listener": listener, **({"generation": older} if older else {})}
        )


def clear(database: Database[dict[str, Any]], service: str, listeners: Iterable[Component[Any]]) -> None:
    """Clears what the listeners have left; their workers of before must have ended."""
    for listener in listeners:
        for left in listener.left:
            _clear(database, service, listener.name, left)


def _clear(database: Database[dict[str, Any]], service: str, listener: str, left: LeftTable) -> None:
    try:
        if refusal(database[left.table]) is None:  # a view has no rows of its own
            without(database, service, listener, left.table, left.below)
    except OperationFailure as error:
        reason = (error.details or {}).get("errmsg") or str(error)
        log.warning(
            "outputs of a listener stay in a table that it has left; they are removed when MongoDB permits it",
            listener=listener,
            table=left.table,
            reason=reason,
        )
        return
    database[names.COMPONENTS].update_one(
        {"_id": f"{service}/listener/{listener}"}, {"$pull": {"left": {"table": left.table, "below": left.below}}}
    )
    log.info("outputs of a listener are removed from a table that it has left", listener=listener, table=left.table)
