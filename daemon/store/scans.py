"""Scans: how far a backfill or resync of a listener is, and whether the listener's rows have been judged since its last change.

The *mark* names what the rows were judged for: the listener's generation, and a hash of which rows it takes. A worker that
starts scans where the mark is not the one that it serves (R9a); the mark is set only when the scan has ended (R9b), by the leader
only (R9c: fenced by the epoch). A scan that was killed goes on behind `last`, the end of its finished prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from components.errors import Fenced
from daemon.store import names


@dataclass(frozen=True, slots=True)
class Mark:
    """What a listener's rows are judged for."""

    generation: int
    scope: str

    def document(self) -> dict[str, Any]:
        return {"generation": self.generation, "scope": self.scope}


@dataclass(frozen=True, slots=True)
class ScanState:
    """A scan that is due: why, how far it is, and the `_id` behind which it goes on (`started` False: from the beginning)."""

    reason: str
    started: bool = False
    last: Any = None
    done: int = 0


class Scans:
    """The scan of one listener in `_predictd.scans`."""

    def __init__(self, database: Database[dict[str, Any]], service: str, listener: str, epoch: int) -> None:
        self._collection: Collection[dict[str, Any]] = database[names.SCANS]
        self._id = f"{service}/{listener}"
        self._epoch = epoch

    def due(self, mark: Mark) -> ScanState | None:
        """The scan that the mark asks for; None where all rows have been judged for it."""
        found = self._collection.find_one({"_id": self._id})
        if found is None:
            return ScanState("first start")
        if found.get("mark") != mark.document():
            return ScanState("the listener changed")
        if found["state"] == "done":
            return None
        return ScanState(found["reason"], "last" in found, found.get("last"), found.get("done", 0))

    def begin(self, mark: Mark, reason: str) -> None:
        """A scan from the beginning is due; whatever was noted of an earlier one is forgotten."""
        self._write(
            {
                "$set": {"mark": mark.document(), "state": "running", "reason": reason, "done": 0},
                "$unset": {"last": "", "finished_at": ""},
                "$currentDate": {"started_at": True},
            }
        )

    def progress(self, mark: Mark, last: Any, done: int) -> None:
        """Every row up to and with the `_id` `last` is judged and acknowledged."""
        self._write({"$set": {"last": last, "done": done}}, mark)

    def finish(self, mark: Mark, done: int) -> None:
        """All rows are judged: sets the mark."""
        self._write(
            {"$set": {"state": "done", "done": done}, "$unset": {"last": ""}, "$currentDate": {"finished_at": True}},
            mark,
        )

    def _write(self, update: Mapping[str, Any], mark: Mark | None = None) -> None:
        """Fenced by the epoch. With a mark, only the scan that was begun for it moves."""
        query: dict[str, Any] = {"_id": self._id, "epoch": {"$lte": self._epoch}}
        if mark is not None:
            query["mark"] = mark.document()
        update = {**update, "$set": {**update["$set"], "epoch": self._epoch}}
        try:
            result = self._collection.update_one(query, update, upsert=mark is None)
        except DuplicateKeyError:
            result = None
        if result is None or (mark is not None and not result.matched_count):
            raise Fenced(f"another daemon, with a higher epoch than {self._epoch}, owns the scan of {self._id}")
