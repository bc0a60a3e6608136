"""The key that the tests' declarations are signed with."""

from __future__ import annotations

from typing import Any, Final

from pymongo.database import Database

from components.signing_key import SigningKey
from daemon.store import names
from daemon.store.registry.signed_versions import SignedVersions
from daemon.store.registry.trust import Trust, trust_of

KEY: Final = SigningKey.fresh()


def trust(database: Database[dict[str, Any]], service: str) -> Trust:
    """What a process with the key believes, and signs with."""
    return trust_of(database, service, KEY, make=True)


def sign_versions(database: Database[dict[str, Any]], service: str) -> None:
    """Signs all versions as they are now, as if their fields had been so from the beginning."""
    for found in database[names.VERSIONS].find({"service": service}):
        signed = SignedVersions(service, found["model"], trust(database, service))
        change: dict[str, Any] = {"mac": signed.mac(found)}
        if "promotion" in found:
            was = found["promotion"]
            change["promotion"] = signed.promotion_of(found, found["replaced"], was["revision"], was["declared"])
        database[names.VERSIONS].update_one({"_id": found["_id"]}, {"$set": change})


def trusting(database: Database[dict[str, Any]], service: str) -> dict[str, Any]:
    """What an assignment says of whom to believe."""
    return trust(database, service).encoded()
