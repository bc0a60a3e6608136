"""Scans: how far a backfill or resync of a listener is, and whether all its rows were judged since its last change.

The *mark* is what the rows were judged for: the listener's generation, and a hash of its table, key, filter and worker.
A worker that starts scans if the stored mark is not its own (R9a). The mark counts only when the scan has ended (R9b),
and only the leader's mark counts (R9c: fenced by the epoch). A killed scan goes on behind `last`, the end of its
finished prefix.

A scan may stand in for rows that changed, because the stream's position has moved past them: `owed` is the cluster time
of the first. It outlives the process, so that the lag goes on growing in the next one.

Each order of a scan is a *run* with an id of its own. A write of an older run finds no document with its id, so it can
neither move nor end the newer run.

All partitions of a listener are in one document (`daemon.store.partition`), each with a mark and a run of its own.
If their number has changed, a scan that all had finished stays finished; any other begins again in each new one, and
rows that it had judged before are only touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bson import ObjectId
from bson.timestamp import Timestamp
from pymongo.collection import Collection
from pymongo.database import Database

from components.raw_value import document, fields, readable
from daemon.store import names
from daemon.store.documents import change_one, read_one
from daemon.store.partition import WHOLE, Partition, combined, lay_out, shares
from daemon.store.service.epochs import fenced

_PARTS: Final = ("mark", "state", "reason", "done", "run", "order", "last", "owed", "started_at", "finished_at")
"""The fields of each share."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The generation and scope that a listener's rows are judged for."""

    generation: int
    scope: str

    def document(self) -> dict[str, Any]:
        return {"generation": self.generation, "scope": self.scope}


@dataclass(frozen=True, slots=True)
class Run:
    """A scan that is due: its reason, how far it is, and the `_id` behind which it goes on (`resumed` False: from the
    beginning).
    """

    id: ObjectId
    reason: str
    resumed: bool = False
    last: Any = None
    done: int = 0


class Scans:
    """The scan of one listener in `_predictd.scans`."""

    def __init__(
        self, database: Database[dict[str, Any]], service: str, listener: str, epoch: int, partition: Partition = WHOLE
    ) -> None:
        self._partition = partition
        self._collection: Collection[dict[str, Any]] = database[names.SCANS]
        self._service, self._id = service, f"{service}/{listener}"
        self._epoch = epoch

    def due(self, mark: Mark, order: str) -> Run | None:
        """The scan that the mark needs; begins it if it has not begun. None if all rows have been judged for the mark.

        A scan that began at the other end of the table begins again.

        Takes the scan over: gives it a new run id, so that an older leader that still scans cannot end it. Raises
        Fenced.
        """
        run = ObjectId()
        taken = {"epoch": self._epoch, self._partition.path("run"): run}
        raw = change_one(self._collection, self._own, {"$set": taken})
        found = {} if raw is None else readable(self._partition.own(fields(raw.raw)), "last")
        if found.get("mark") != mark.document():
            return self.begin(mark, "the listener changed" if found else "first start", order)
        if found.get("state") == "done":
            return None
        reason, done = str(found.get("reason")), found.get("done")
        if found.get("order", "oldest") != order or not isinstance(done, int):
            return self.begin(mark, reason, order)
        return Run(run, reason, "last" in found, found.get("last"), done)

    def owed(self) -> Timestamp | None:
        """Since when rows wait that only a scan will find; None if there are none."""
        of, index = self._partition.of, self._partition.index
        all_ = shares(read_one(self._collection, {"_id": self._id}, {"owed": 1, "of": 1, "partitions": 1}) or {})
        owed = all_[index].get("owed") if len(all_) == of else None
        return owed if isinstance(owed, Timestamp) else None

    def begin(self, mark: Mark, reason: str, order: str, owed: Timestamp | None = None) -> Run:
        """Orders a scan from the beginning; it supersedes the run that goes on. `owed`: it stands in for rows that
        changed since then. Raises Fenced.
        """
        run = Run(ObjectId(), reason)
        about = {
            "mark": mark.document(),
            "state": "running",
            "reason": reason,
            "done": 0,
            "run": run.id,
            "order": order,
        }
        about = {self._partition.path(name): value for name, value in about.items()}
        begin = partial(self._begin, about, owed)
        fenced(begin, self._collection, self._own, self._service, self._epoch, f"the scan of {self._id}")
        return run

    def _begin(self, about: Mapping[str, Any], owed: Timestamp | None) -> None:
        path = self._partition.path
        self._collection.update_one(
            self._own,
            {
                "$set": {**about, "epoch": self._epoch},
                "$unset": {path("last"): "", path("finished_at"): ""},
                "$currentDate": {path("started_at"): True},
                **({} if owed is None else {"$min": {path("owed"): owed}}),
            },
            upsert=True,
        )

    def progress(self, run: Run, last: Any, done: int) -> None:
        """Notes that every row up to and with the `_id` `last` is judged and acknowledged; nothing for a superseded
        run.
        """
        path = self._partition.path
        place = document({path("done"): done}, {path("last"): last})
        self._collection.update_one({"_id": self._id, path("run"): run.id}, {"$set": place})

    def finish(self, run: Run, done: int) -> bool:
        """All rows are judged: the mark counts from now on. False if the run was superseded."""
        path = self._partition.path
        result = self._collection.update_one(
            {"_id": self._id, path("run"): run.id},
            {
                "$set": {path("state"): "done", path("done"): done},
                "$unset": {path("last"): "", path("owed"): ""},
                "$currentDate": {path("finished_at"): True},
            },
        )
        return bool(result.matched_count)

    def claim(self) -> None:
        """Carries the scan over from another number of partitions. Comes before every other use."""
        lay_out(self._collection, self._id, self._epoch, self._partition.of, self._carried, _PARTS)

    def _carried(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        scan = combined(document)
        done = scan["done"] // self._partition.of if scan["state"] == "done" else 0
        share = {name: scan[name] for name in ("mark", "state", "reason", "order") if scan.get(name) is not None}
        owed = [time for each in shares(document) if isinstance(time := each.get("owed"), Timestamp)]
        return {**share, "done": done, **({"owed": min(owed)} if owed else {})}

    @property
    def _own(self) -> dict[str, Any]:
        """The document, as long as it is this leader's and divided as this process believes."""
        return {"_id": self._id, "of": self._partition.layout, "epoch": {"$not": {"$gt": self._epoch}}}  # R9c
