"""How much of the oplog is left behind a position of the change stream; if nothing is, the history is lost."""

from __future__ import annotations

from typing import Any, Final

from bson.timestamp import Timestamp
from pymongo.database import Database
from pymongo.errors import OperationFailure

FULL: Final = 0.9
"""From this share of its largest size on, an oplog counts as full."""


def headroom(database: Database[dict[str, Any]], position: Timestamp) -> tuple[float, float] | None:
    """The seconds of the oplog before the position, and their share of the oplog's window: 1.0 if the position is at
    its end, or if the oplog is not full yet; 0.0 if the next write may remove the entry at the position. None if this
    user may not read the oplog.
    """
    oplog = database.client.get_database("local").get_collection("oplog.rs", read_preference=database.read_preference)
    try:
        first = oplog.find_one({}, {"ts": 1}, sort=[("$natural", 1)])
        last = oplog.find_one({}, {"ts": 1}, sort=[("$natural", -1)])
    except OperationFailure as error:
        if error.code in {13, 26}:
            return None
        raise
    if first is None or last is None:
        return None
    left = float(position.time - first["ts"].time)
    if position >= last["ts"] or (position >= first["ts"] and not _is_full(database)):
        return left, 1.0
    window = max(last["ts"].time - first["ts"].time, 1)
    return left, min(1.0, max(0.0, left / window))


def _is_full(database: Database[dict[str, Any]]) -> bool:
    """Whether MongoDB removes the oldest entries of the oplog; also if this user may not ask."""
    try:
        about = database.client.get_database("local", read_preference=database.read_preference).command(
            "collStats", "oplog.rs"
        )
    except OperationFailure:
        return True
    return bool(about["size"] >= FULL * about["maxSize"])
