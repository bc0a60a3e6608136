"""Bells: how one process tells another that there is something to do, without either knowing the other.

    _predictd.bells: {_id: service, count}

Whoever changes what a service should do (a job that is queued or cancelled, a version that goes live) rings; whoever
does it compares the count with the one that it saw last. A ring says only "look again": what there is to do stands in
its own collection, so a ring that nobody heard is no loss.
"""

from __future__ import annotations

from typing import Any

from pymongo.database import Database

from daemon.store import names

__all__ = ["count", "ring"]


def ring(database: Database[dict[str, Any]], service: str) -> None:
    """Everybody who listens to the service's bell looks again."""
    rung = {"$add": [{"$cond": [{"$isNumber": "$count"}, "$count", 0]}, 1]}
    database[names.BELLS].update_one({"_id": service}, [{"$set": {"count": rung}}], upsert=True)


def count(database: Database[dict[str, Any]], service: str) -> int:
    """How often the service's bell has rung; 0 before the first time."""
    found = database[names.BELLS].find_one({"_id": service})
    count_ = (found or {}).get("count")
    return int(count_) if isinstance(count_, (int, float)) else 0
