"""Which kept rows judged a model's promotions, and which versions are held because they fell on them.

A version's document names them (files of `daemon.store.rows.kept_rows`) before the version goes live: `judged` what it
was measured on, `anchor` what every later one is measured on too, until a person promotes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pymongo.database import Database

from daemon.store import names

Data = Database[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Judged:
    """Kept rows, by dataset, and the metrics that the version had whose promotion they judged."""

    rows: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def judges(database: Data, service: str, model: str) -> tuple[Judged, Judged]:
    """What judged the last promotion, and the anchor: what judged the last one by a person, or the first one. Empty if
    there are none.
    """
    query = {"service": service, "model": model, "state": {"$in": ["live", "retired"]}, "judged": {"$type": "object"}}
    found = database[names.VERSIONS].find_one(
        {**query, "promoted_at": {"$type": "date"}}, {"judged": 1, "anchor": 1}, sort=[("promoted_at", -1)]
    )
    return _judged((found or {}).get("judged")), _judged((found or {}).get("anchor"))


def keep_judges(database: Data, service: str, model: str, number: int, judged: Judged, anchor: Judged) -> None:
    """Names what later candidates are measured on, once this version has gone live."""
    change = {"judged": asdict(judged), "anchor": asdict(anchor)}
    database[names.VERSIONS].update_one({"_id": f"{service}/{model}/{number}"}, {"$set": change})


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
    naming = database[names.VERSIONS].find(query, {"judged": 1, "anchor": 1})
    kept = [_judged(version.get(which)).rows for version in naming for which in ("judged", "anchor")]
    pinned = database[names.DATASETS].find({"name": {"$type": "string"}}, {"_id": 0, "name": 1})
    return {name for rows in kept for name in rows.values()} | {each["name"] for each in pinned}


def _judged(found: Any) -> Judged:
    """What a stored document holds of it, which may be anything."""
    parts = found if isinstance(found, Mapping) else {}
    rows, metrics = (each if isinstance(each, Mapping) else {} for each in (parts.get("rows"), parts.get("metrics")))
    return Judged(
        {name: file for name, file in rows.items() if isinstance(file, str)},
        {name: value for name, value in metrics.items() if isinstance(value, float)},
    )
