"""Requests to a worker: documents in `_predictd.requests` that reach it through its own change stream, as any row does.

A request consists of its `_id`, because the stream delivers nothing else. A TTL index removes it later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from bson import ObjectId
from pymongo.client_session import ClientSession
from pymongo.database import Database

from components.raw_value import document
from daemon.store import names

KEEP_SECONDS: Final = 7 * 24 * 3600  # a request reaches its worker as soon as one runs


def prepare(database: Database[dict[str, Any]]) -> None:
    """Makes the TTL index."""
    database[names.REQUESTS].create_index("at", expireAfterSeconds=KEEP_SECONDS)


def retry(database: Database[dict[str, Any]], about: Mapping[str, Any]) -> None:
    """Asks for a row to be judged again; `about` is {service, listener, row}."""
    _ask(database, about, None)


def reload(
    database: Database[dict[str, Any]], service: str, listeners: Iterable[str], session: ClientSession | None = None
) -> None:
    """Asks the workers of these listeners to look at the registry again: another generation is live."""
    for listener in listeners:
        _ask(database, {"service": service, "listener": listener, "reload": True}, session)


def _ask(database: Database[dict[str, Any]], about: Mapping[str, Any], session: ClientSession | None) -> None:
    plain = {name: value for name, value in about.items() if name != "row"}
    row = {"row": about["row"]} if "row" in about else {}
    request = {"_id": document({**plain, "nonce": ObjectId()}, row), "at": datetime.now(UTC)}
    database[names.REQUESTS].insert_one(request, session=session)
