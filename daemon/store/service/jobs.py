"""Jobs: one training or one validation each, from its request to its result.

    {_id: "service/kind/target/key", and the other fields of `Job`}

    queued ──claim──> running ──finish──> done
      ▲                  │ ├──fail────> failed
      └──fail, release───┘ └──cancel──> cancelled      (a queued job can be cancelled, too)

* *Once*: a trigger that two daemons may see queues under a key of its own; the second insert of that `_id` fails.
* *Fenced*: a claim writes the leader's epoch, and each write to a running job requires it. The next leader claims a job
  that an older one left running; later writes of the older leader match nothing.
* *Cancelled or promoted, never both*: cancelling changes the state that a promotion's transaction asks for
  (`daemon.store.registry.versions`).
* Times are the server's.
"""

from __future__ import annotations

import json
from collections.abc import Collection as Container
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

from bson import ObjectId
from pydantic import Field, Strict, TypeAdapter
from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, PyMongoError

from components.errors import NotApplied
from components.names import meant
from daemon.health.job_report import JobError, JobProgress
from daemon.health.report import defaulting
from daemon.store import names
from daemon.store.documents import change_one, decoded, read, read_one
from daemon.store.service import notify

LOG_LINES: Final = 200
KEEP_SECONDS: Final = 90 * 24 * 3600
DECLARED_BY: Final = {"train": "trainer", "validate": "validation"}

Kind = Literal["train", "validate"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]

_ONE: Final = {"$not": {"$type": "array"}}  # to MongoDB, an array has the types and values of its elements
_WHOLE: Final = {
    **{name: {"$type": "string", **_ONE} for name in ("_id", "target", "model")},
    **{
        name: {
            "$type": ["int", "long"],
            "$lt": 1 << 53,
            **_ONE,
        }  # MongoDB adds to it, and stores a sum past 2^63 as a double
        for name in ("epoch", "attempts", "failures", "best_step")
    },
    **{name: {"$type": "object", **_ONE} for name in ("trigger", "progress")},
    "ran": {"$type": ["double", "int", "long"], **_ONE},
    "log": {"$type": "array"},
    "kind": {"$in": list(DECLARED_BY), **_ONE},
    "state": {"$in": list(get_args(JobState)), **_ONE},
}
"""The fields of every job. A document that does not match was not written by predictd, and is skipped."""

_Moment = Annotated[Annotated[datetime, Strict()] | None, defaulting(None)]
_Number = Annotated[int | None, defaulting(None)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training or a validation. `ran` counts seconds of all attempts, `failures` those in a row that got no further
    than `best_step`. A field that is not in `_WHOLE` reads as its default if its value has another type.
    `promoted` is the version that the job put live. `log` is None if it was not read.
    """

    id: Annotated[str, Field(alias="_id")]
    service: str
    kind: Kind
    target: str
    model: str
    trigger: Mapping[str, Any]
    state: JobState = "queued"
    epoch: int = 0
    attempts: int = 0
    failures: int = 0
    retries: _Number = None
    best_step: int = 0
    ran: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False), defaulting(0.0)] = 0.0
    threads: _Number = None
    progress: Annotated[JobProgress, defaulting(JobProgress())] = field(default_factory=JobProgress)
    log: Annotated[Sequence[str] | None, defaulting(())] = None
    error: Annotated[JobError | None, defaulting(None)] = None
    result: Annotated[Mapping[str, Any] | None, defaulting(None)] = None
    promoted: _Number = None
    created_at: _Moment = None
    started_at: _Moment = None
    finished_at: _Moment = None
    retry_at: _Moment = None
    heartbeat: _Moment = None
    untidy: Annotated[bool | None, defaulting(None)] = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Job:
        """The job in a document that `_WHOLE` matches."""
        return _ADAPTER.validate_python(dict(document))

    def document(self) -> dict[str, Any]:
        """The job as MongoDB holds it: what is None is left out."""
        document: dict[str, Any] = _ADAPTER.dump_python(self, by_alias=True, exclude_none=True, warnings=False)
        return document

    @property
    def name(self) -> str:
        """Its id as people type it: without the service."""
        return self.id.partition("/")[2]

    @property
    def ended(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def why(self) -> str:
        """Why its last attempt failed."""
        return "it left no reason" if self.error is None else f"{self.error.type}: {self.error.message}"


_ADAPTER = TypeAdapter(Job)


class Jobs:
    """The jobs of one service."""

    def __init__(self, database: Database[dict[str, Any]], service: str) -> None:
        self._database = database
        self._collection: Collection[dict[str, Any]] = database[names.JOBS]
        self._service = service
        self._whole = {"service": service, **_WHOLE}

    def prepare(self) -> None:
        """Makes the indexes; ended jobs are deleted after 90 days, their results stay with the versions."""
        self._collection.create_index([("service", 1), ("state", 1), ("created_at", 1)])
        self._collection.create_index("finished_at", expireAfterSeconds=KEEP_SECONDS)

    # ---- asking for jobs ------------------------------------------------------------------------------------------

    def queue(
        self, kind: Kind, target: str, trigger: Mapping[str, Any], *, key: str | None = None, own: str | None = None
    ) -> str | None:
        """Queues a job and returns its id; `target` is the model to train, or the validation to run.

        With a `key` the job is queued once, even by several daemons: None if the key was used before, or if an equal
        job is waiting. `own` is the caller's key: repeated with it, the call changes nothing. Raises NotApplied if
        nothing of that name is applied.
        """
        model = self._model(kind, target)
        if key is not None and self._collection.find_one({**self._of(kind, target), "state": "queued", "attempts": 0}):
            return None
        identifier = f"{self._service}/{kind}/{target}/{key or own or ObjectId()}"
        job = Job(
            id=identifier, service=self._service, kind=kind, target=target, model=model, trigger=dict(trigger), log=[]
        )
        literal = {name: {"$literal": value} for name, value in job.document().items() if name != "_id"}
        try:  # an upsert, because only an update by pipeline knows the server's time
            self._collection.update_one(
                {"_id": identifier, "state": None}, [{"$set": {**literal, "created_at": "$$NOW"}}], upsert=True
            )
        except DuplicateKeyError:
            if own is None:
                return None
        with suppress(PyMongoError):  # it is queued; without the notification it is noticed a little later
            notify.ring(self._database, self._service)
        return identifier

    def cancel(self, identifier: str) -> bool:
        """Cancels the job; False if it has ended, or has put its version live.

        It counts at once. The daemon that runs the job is notified, ends the process and removes the candidate
        (`untidy`).
        """
        found = self._collection.find_one_and_update(
            {"_id": identifier, "service": self._service, "state": {"$in": ["queued", "running"]}, "promoted": None},
            {
                "$set": {"state": "cancelled", "untidy": True},
                "$unset": {"retry_at": ""},
                "$currentDate": {"finished_at": True},
            },
        )
        if found is not None:
            notify.ring(self._database, self._service)
        return found is not None

    # ---- reading --------------------------------------------------------------------------------------------------

    def get(self, identifier: str) -> Job | None:
        """One job by its id (with or without the service's name in front), or by the end of its id if only one job
        matches; else None.
        """
        for whole in (identifier, f"{self._service}/{identifier}"):
            found = read_one(self._collection, {**self._whole, "_id": whole})
            if found is not None:
                return Job.from_document(found)
        text = {"$cond": [{"$eq": [{"$type": "$_id"}, "string"]}, "$_id", ""]}  # a foreign document may have any
        ending = {"$expr": {"$eq": [{"$arrayElemAt": [{"$split": [text, "/"]}, -1]}, {"$literal": identifier}]}}
        several = list(read(self._collection, {**self._whole, **ending}, limit=2))
        return Job.from_document(several[0]) if len(several) == 1 else None

    def listed(self, limit: int = 100, **matching: Any) -> list[Job]:
        """The newest jobs, newest first, without their logs; `matching` narrows them (kind=..., target=..., model=...,
        state=...).
        """
        query = {"$and": [self._whole, matching]}
        order = [("created_at", -1), ("_id", -1)]
        found = read(self._collection, query, {"log": 0}, sort=order, limit=limit)
        return [Job.from_document(document) for document in found]

    # ---- running them: everything from here on is the leader's -----------------------------------------------------

    def claim(self, epoch: int, busy: Container[str], own: Container[str] | None = None) -> Job | None:
        """Claims the oldest job that is due: one that waits, whose retry is due, or that an older leader left running.

        `own` are the jobs that the leader of this epoch runs. Another job of its epoch is one whose claim was not
        acknowledged, and is claimed again. Jobs of the models in `busy` are skipped. Returns the claimed job, or None.
        """
        due = {
            "$and": [self._whole, {"model": {"$nin": list(busy)}}],
            "$or": [
                {"state": "queued", "epoch": {"$lte": epoch}, "$expr": {"$lte": ["$retry_at", "$$NOW"]}},
                {"state": "running", "epoch": {"$lt": epoch}},
                *([] if own is None else [{"state": "running", "epoch": epoch, "_id": {"$nin": list(own)}}]),
            ],
        }
        claimed = {
            "state": "running",
            "epoch": epoch,
            "attempts": {"$add": ["$attempts", 1]},
            "heartbeat": "$$NOW",
            "started_at": {"$ifNull": ["$started_at", "$$NOW"]},
        }
        claimed_one = change_one(
            self._collection,
            due,
            [{"$set": claimed}, {"$unset": "retry_at"}],
            sort=[("created_at", 1), ("_id", 1)],
            return_document=ReturnDocument.AFTER,
        )
        return None if claimed_one is None else Job.from_document(decoded(claimed_one, self._collection.codec_options))

    def progress(
        self, identifier: str, epoch: int, progress: JobProgress, lines: Iterable[str] = (), **about: Any
    ) -> bool:
        """Writes a heartbeat, the known progress, new lines of the log, and further fields `about` the job (ran,
        threads, retries).

        False if the job is no longer ours: cancelled, or claimed by another leader.
        """
        update: dict[str, Any] = {
            "$set": {**{f"progress.{name}": value for name, value in progress.known().items()}, **about},
            "$currentDate": {"heartbeat": True},
        }
        if progress.step is not None:
            update["$max"] = {"best_step": progress.step}
        lines = list(lines)
        if lines:
            update["$push"] = {"log": {"$each": lines, "$slice": -LOG_LINES}}
        return bool(self._collection.update_one(self._running(identifier, epoch), update).matched_count)

    def finish(self, identifier: str, epoch: int, result: Mapping[str, Any]) -> bool:
        """The job is done, with this result; False if it is no longer ours."""
        return self._end(identifier, epoch, {"state": "done", "result": dict(result)}, ["error"])

    def fail(self, identifier: str, epoch: int, error: JobError, retry_in: float | None, failures: int = 1) -> bool:
        """The job has failed: for good, or to be tried again in `retry_in` seconds; `failures` counts those in a row.
        False if it is not ours.
        """
        if retry_in is None:
            return self._end(
                identifier, epoch, {"state": "failed", "error": asdict(error), "failures": failures, "untidy": True}
            )
        again = {"state": "queued", "error": {"$literal": asdict(error)}, "failures": failures}
        return self._back(identifier, epoch, {**again, "retry_at": {"$add": ["$$NOW", int(retry_in * 1000)]}})

    def release(self, identifier: str, epoch: int) -> bool:
        """The job goes back into the queue, and this attempt does not count: the daemon stops, and the job is not
        at fault.
        """
        return self._back(identifier, epoch, {"state": "queued", "attempts": {"$subtract": ["$attempts", 1]}})

    def untidy(self) -> list[Job]:
        """Jobs that were cancelled or have failed for good and may have left a candidate or a checkpoint."""
        return [
            Job.from_document(document)
            for document in read(self._collection, {**self._whole, "untidy": True}, {"log": 0})
        ]

    def tidied(self, identifier: str) -> None:
        """Notes that the job's candidate and checkpoint are removed."""
        self._collection.update_one({"_id": identifier}, {"$unset": {"untidy": ""}})

    # ---- shared ---------------------------------------------------------------------------------------------------

    def _end(self, identifier: str, epoch: int, fields: Mapping[str, Any], gone: Iterable[str] = ()) -> bool:
        update: dict[str, Any] = {"$set": dict(fields), "$currentDate": {"finished_at": True, "heartbeat": True}}
        unset = dict.fromkeys(gone, "")
        ended = self._collection.update_one(
            self._running(identifier, epoch), update | ({"$unset": unset} if unset else {})
        )
        return self._notified(ended.matched_count)

    def _back(self, identifier: str, epoch: int, fields: Mapping[str, Any]) -> bool:
        return self._notified(
            self._collection.update_one(self._running(identifier, epoch), [{"$set": dict(fields)}]).matched_count
        )

    def _notified(self, matched: int) -> bool:
        if matched:
            notify.ring(self._database, self._service)
        return bool(matched)

    def _running(self, identifier: str, epoch: int) -> dict[str, Any]:
        return {"_id": identifier, "state": "running", "epoch": epoch}

    def _of(self, kind: str, target: str) -> dict[str, Any]:
        return {"service": self._service, "kind": kind, "target": target}

    def _model(self, kind: Kind, target: str) -> str:
        """The model of a job: two jobs of one model never run at the same time."""
        declared = DECLARED_BY[kind]
        component = read_one(
            self._database[names.COMPONENTS],
            {"_id": f"{self._service}/{declared}/{target}", "state": "applied"},
            {"declaration": 1},
        )
        if component is None:
            applied = {"service": self._service, "kind": declared, "state": "applied"}
            others = [str(each.get("name")) for each in read(self._database[names.COMPONENTS], applied, {"name": 1})]
            near = meant(target, others) or "; apply it first"
            raise NotApplied(f"there is no {declared} {target!r} in service {self._service!r}{near}")
        try:
            return str(json.loads(component["declaration"])["model"])
        except (KeyError, TypeError, ValueError, RecursionError):  # it is not signed, and the daemon refuses it as well
            raise NotApplied(
                f"{declared} {target!r} of service {self._service!r} is not readable in the database; apply it again"
            ) from None
