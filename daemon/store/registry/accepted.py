"""The settings of the last accepted service.toml, beside the declarations, which the registry holds.

    _predictd.services: {_id: service, identity, accepted: JSON text, accepted_mac}
    text: {"revision": n, "SECTION.KEY": value, ...}    of an older release without a revision, which counts as 0

They are signed: they say which code may be imported. A daemon that holds an edit at its start runs what was accepted
last, with these settings; so does one that takes over. Programs read `guard.unset_share` here. The revision only grows,
and is pinned as those of declarations are (`trust`), so that older settings cannot be put back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import structlog
from pymongo.database import Database

from daemon.store import names
from daemon.store.documents import read_one
from daemon.store.registry.trust import SETTINGS, Trust

log = structlog.get_logger(__name__)

_LARGEST: Final = 1024 * 1024


def keep_settings(database: Database[dict[str, Any]], service: str, trust: Trust, settings: Mapping[str, Any]) -> int:
    """Notes the settings that are accepted now; returns their revision, which the caller pins."""
    revision = settings_revision(database, service, trust) + 1
    text = json.dumps({"revision": revision, **settings})
    change = {"accepted": text, "accepted_mac": trust.sign("accepted", service, text)}
    database[names.SERVICES].update_one({"_id": service}, {"$set": change})
    return revision


def accepted_settings(database: Database[dict[str, Any]], service: str, trust: Trust) -> dict[str, Any]:
    """The settings by key; empty if none were accepted yet, if the service's key has not signed them, or if they are
    older than those that were seen.
    """
    revision, settings = _signed(database, service, trust)
    if revision >= trust.revisions.get(SETTINGS, 0):
        return settings
    log.error(
        "the accepted settings in the database are refused: somebody has removed or altered them, or put older ones "
        "back; those of service.toml, or the defaults, count until the daemon accepts a file again",
        service=service,
    )
    return {}


def settings_revision(database: Database[dict[str, Any]], service: str, trust: Trust) -> int:
    """The highest revision of the settings that is known."""
    return max(_signed(database, service, trust)[0], trust.revisions.get(SETTINGS, 0))


def _signed(database: Database[dict[str, Any]], service: str, trust: Trust) -> tuple[int, dict[str, Any]]:
    """The revision and the settings that the database holds; 0 and nothing if the service's key has not signed them."""
    small = {"$expr": {"$lte": [{"$bsonSize": "$$ROOT"}, _LARGEST]}}
    found = read_one(database[names.SERVICES], {"_id": service, **small}) or {}
    text, mac = found.get("accepted"), found.get("accepted_mac")
    if not isinstance(text, str) or not trust.verifies(mac, "accepted", service, text):
        return 0, {}
    settings = json.loads(text)
    return settings.pop("revision", 0), settings
