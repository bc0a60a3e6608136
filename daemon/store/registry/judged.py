"""Which kept rows judged a model's promotions, and which versions are held because they fell on them.

A version's document names them (`judged`: dataset to the name of a file of `daemon.store.rows.kept_rows`) before the
version goes live. Those of the last promotion count, whoever made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo.database import Database

from daemon.store import names

__all__ = ["held", "judges", "keep_judges", "named"]

Data = Database[dict[str, Any]]


def judges(database: Data, service: str, model: str) -> dict[str, str]:
    """The kept rows that judged the last promotion, by dataset. Empty if there are none."""
    query = {"service": service, "model": model, "state": {"$in": ["live", "retired"]}, "judged": {"$type": "object"}}
    found = database[names.VERSIONS].find_one(
        {**query, "promoted_at": {"$type": "date"}}, {"judged": 1}, sort=[("promoted_at", -1)]
    )
    return _texts((found or {}).get("judged"))


def keep_judges(database: Data, service: str, model: str, number: int, judged: Mapping[str, str]) -> None:
    """Names the kept rows that later candidates are measured on, once this version has gone live."""
    database[names.VERSIONS].update_one({"_id": f"{service}/{model}/{number}"}, {"$set": {"judged": dict(judged)}})


def held(database: Data, service: str) -> dict[str, str]:
    """For each model, why its newest version is held, if it is newer than the live one."""
    query = {"service": service, "state": {"$in": ["live", "candidate"]}, "number": {"$type": "int"}}
    shown = {"model": 1, "number": 1, "state": 1, "held": 1, "reason": 1}
    found: dict[str, str] = {}
    for version in database[names.VERSIONS].find(query, shown).sort("number", 1):
        model = str(version.get("model"))
        if version["state"] == "live":
            found.pop(model, None)
        elif version.get("held") is True:
            found[model] = f"version {version['number']} is held: {version.get('reason')}"
    return found


def named(database: Data) -> set[str]:
    """The files of kept rows that a version of any service, or a pinned dataset, names."""
    query = {"judged": {"$type": "object"}, "state": {"$ne": "removed"}}
    naming = database[names.VERSIONS].find(query, {"judged": 1})
    pinned = database[names.DATASETS].find({"name": {"$type": "string"}}, {"_id": 0, "name": 1})
    return {name for version in naming for name in _texts(version["judged"]).values()} | {
        each["name"] for each in pinned
    }


def _texts(found: Any) -> dict[str, str]:
    """The texts in a stored document, which may hold anything."""
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, Mapping) else {}
