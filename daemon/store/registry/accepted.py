"""The settings of the last accepted service.toml, beside the declarations, which the registry holds.

    _predictd.services: {_id: service, identity, accepted: JSON text, accepted_mac}

They are signed: they say which code may be imported. A daemon that holds an edit at its start runs what was accepted
last, with these settings; so does one that takes over. Programs read `guard.unset_share` here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pymongo.database import Database

from daemon.store import names
from daemon.store.documents import read_one
from daemon.store.registry.trust import Trust

_LARGEST: Final = 1024 * 1024


def keep_settings(database: Database[dict[str, Any]], service: str, trust: Trust, settings: Mapping[str, Any]) -> None:
    """Notes the settings that are accepted now."""
    text = json.dumps(dict(settings))
    change = {"accepted": text, "accepted_mac": trust.sign("accepted", service, text)}
    database[names.SERVICES].update_one({"_id": service}, {"$set": change})


def accepted_settings(database: Database[dict[str, Any]], service: str, trust: Trust) -> dict[str, Any]:
    """The settings by key; empty if none were accepted yet, or if the service's key has not signed them."""
    small = {"$expr": {"$lte": [{"$bsonSize": "$$ROOT"}, _LARGEST]}}
    found = read_one(database[names.SERVICES], {"_id": service, **small}) or {}
    text, mac = found.get("accepted"), found.get("accepted_mac")
    if not isinstance(text, str) or not trust.verifies(mac, "accepted", service, text):
        return {}
    settings = json.loads(text)
    return settings if isinstance(settings, dict) else {}
