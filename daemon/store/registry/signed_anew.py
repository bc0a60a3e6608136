"""Signs declarations and versions anew when a daemon begins to lead: those of an older release, and those of a key that
is replaced.

An older release signed by HMAC, without the database's identity. Such a signature is believed once: while the database
has no identity yet. One transaction gives it one and signs its declarations, so that no half of it is ever seen. From
then on an HMAC is refused, because the declarations of those days would be believed in whatever database.

A release between signed declarations, but no versions. What the database holds is believed once: while neither the
database says that its versions are signed, nor the state directory has seen them signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog
from pymongo.client_session import ClientSession
from pymongo.database import Database

from components.errors import SignatureRefused
from daemon.store import names
from daemon.store.connection import in_transaction
from daemon.store.documents import read, read_one
from daemon.store.registry.components import LARGEST, parts_of
from daemon.store.registry.signed_versions import SignedVersions
from daemon.store.registry.trust import Pins, Trust, store_identity, stored_identity

log = structlog.get_logger(__name__)


def lead(database: Database[dict[str, Any]], service: str, pins: Pins, session: ClientSession | None = None) -> Trust:
    """What this daemon believes, once what the database holds is signed with its key. Returns `pins.trust`."""
    new = pins.open(database, service)
    trust = pins.trust
    count = in_transaction(database, session, lambda own: _lead(own, database, service, pins, new=new))
    versions = _sign_versions(database, service, pins)
    pins.keep()
    if count:
        log.info("declarations are signed anew, with the key of this daemon, for this database", n=count)
    if versions:
        log.info("versions are signed as they are, with the key of this daemon, for this database", n=versions)
    return trust


def _sign_versions(database: Database[dict[str, Any]], service: str, pins: Pins) -> int:
    """How many versions are signed: those of an older release once, and at each start those that a former key has
    signed. A start that is cut short goes on at the next one, because the mark comes last.
    """
    trust, count = pins.trust, 0
    own = replace(trust, keys=(pins.key.public,))
    services = database[names.SERVICES]
    marked = own.verifies((read_one(services, {"_id": service}) or {}).get("versions"), "versions", service)
    adopt = not pins.versions_signed and not marked
    if adopt or pins.former:
        live = {
            each.get("name"): each for each in read(database[names.COMPONENTS], {"service": service, "kind": "model"})
        }
        shown = dict.fromkeys(("metric_values", "metric_steps", "history", "validations"), 0)
        numbered = {"service": service, "model": {"$type": "string"}, "number": {"$type": "int"}}
        for document in read(database[names.VERSIONS], numbered, shown):
            change = _signed(document, own, trust, live.get(document["model"]) or {}, adopt=adopt)
            if change:
                database[names.VERSIONS].update_one({"_id": document["_id"]}, {"$set": change})
                count += 1
    if not marked:
        services.update_one({"_id": service}, {"$set": {"versions": trust.sign("versions", service)}})
    pins.versions_signed = True
    return count


def _signed(
    document: Mapping[str, Any], own: Trust, trust: Trust, model: Mapping[str, Any], *, adopt: bool
) -> dict[str, Any]:
    """The signatures that a version lacks and is to have. `trust` believes the former keys too."""
    service, name = document["service"], document["model"]
    mine, before = SignedVersions(service, name, own), SignedVersions(service, name, trust)
    change: dict[str, Any] = {}
    if not mine.has_signed(document) and (adopt or before.has_signed(document)):
        change["mac"] = mine.mac(document)
    promotion, promoted_at = before.promoted(document), document.get("promoted_at")
    revision, declared = (promotion.revision, promotion.declared) if promotion else (0, 0)
    if promotion is None and adopt and isinstance(promoted_at, datetime):
        is_live, at = model.get("live") == document["number"], model.get("revision")
        revision, declared = int(promoted_at.timestamp() * 1000), at if is_live and isinstance(at, int) else 0
    if revision and mine.promoted(document) is None:
        change["promotion"] = mine.promotion_of(document, document.get("replaced"), revision, declared)
    return change


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
