"""The key that the tests' declarations are signed with."""

from __future__ import annotations

from typing import Any, Final

from pymongo.database import Database

from components.signing_key import SigningKey
from daemon.store.registry.trust import trust_of

KEY: Final = SigningKey.fresh()


def trusting(database: Database[dict[str, Any]], service: str) -> dict[str, Any]:
    """What an assignment says of whom to believe."""
    return trust_of(database, service, KEY, make=True).encoded()
