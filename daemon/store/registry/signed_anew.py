"""Signs declarations anew when a daemon begins to lead: those of an older release, and those of a key that is replaced.

An older release signed by HMAC, without the database's identity. Such a signature is believed once: while the database
has no identity yet. One transaction gives it one and signs its declarations, so that no half of it is ever seen. From
then on an HMAC is refused, because the declarations of those days would be believed in whatever database.
"""

from __future__ import annotations

from typing import Any

import structlog
from pymongo.client_session import ClientSession
from pymongo.database import Database

from components.errors import SignatureRefused
from daemon.store import names
from daemon.store.connection import in_transaction
from daemon.store.registry.components import LARGEST, parts_of
from daemon.store.registry.trust import Pins, Trust, store_identity, stored_identity

__all__ = ["lead"]

log = structlog.get_logger(__name__)


def lead(database: Database[dict[str, Any]], service: str, pins: Pins, session: ClientSession | None = None) -> Trust:
    """What this daemon believes, once what the database holds is signed with its key. Returns `pins.trust`."""
    new = pins.open(database, service)
    trust = pins.trust
    count = in_transaction(database, session, lambda own: _lead(own, database, service, pins, new=new))
    pins.keep()
    if count:
        log.info("declarations are signed anew, with the key of this daemon, for this database", n=count)
    return trust


def _lead(session: ClientSession, database: Database[dict[str, Any]], service: str, pins: Pins, *, new: bool) -> int:
    trust, count = pins.trust, 0
    if stored_identity(database, service, session) != trust.identity:
        store_identity(database, service, trust.identity, session)
    components = database[names.COMPONENTS]
    if not new and not pins.former:
        return 0
    small = {"service": service, "state": "applied", "$expr": {"$lte": [{"$bsonSize": "$$ROOT"}, LARGEST]}}
    for document in components.find(small, session=session):
        try:
            parts = parts_of(document, service)
        except SignatureRefused:
            continue
        *before, sizes, text = parts  # an older release signed no sizes
        known = any(key.public.verify(document["mac"], trust.identity, *parts) for key in pins.former) or (
            new
            and sizes == "{}"
            and any(key.signed_before(document["mac"], *before, text) for key in (pins.key, *pins.former))
        )
        if known:
            signed = {"$set": {"mac": trust.sign(*parts)}}
            components.update_one({"_id": document["_id"], "mac": document["mac"]}, signed, session=session)
            count += 1
    return count
