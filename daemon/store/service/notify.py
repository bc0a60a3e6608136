"""Notifications of a service: one process tells another that there is something to do.

    _predictd.bells: {_id: service, count}

A process that changes what a service should do (queues or cancels a job, promotes a version) raises the count. The
daemon compares it with the count that it saw last, and looks again if it differs; then its status holds that count.
What there is to do is in other collections, so a lost notification delays it but loses nothing.
"""

from __future__ import annotations

from typing import Any

from pymongo import ReturnDocument
from pymongo.database import Database

from daemon.store import names
from daemon.store.documents import read_one


def ring(database: Database[dict[str, Any]], service: str) -> int:
    """Notifies the service's daemon; returns the notification's number."""
    whole = {"$and": [{"$in": [{"$type": "$count"}, ["int", "long"]]}, {"$lt": ["$count", 1 << 53]}]}
    raised = {"$add": [{"$cond": [whole, "$count", 0]}, 1]}
    bell = database[names.BELLS].find_one_and_update(
        {"_id": service}, [{"$set": {"count": raised}}], {"count": 1}, upsert=True, return_document=ReturnDocument.AFTER
    )
    return int((bell or {})["count"])


def count(database: Database[dict[str, Any]], service: str) -> int:
    """The number of notifications so far."""
    number = (read_one(database[names.BELLS], {"_id": service}) or {}).get("count")
    return number if isinstance(number, int) else 0
