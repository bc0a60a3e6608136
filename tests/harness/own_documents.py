"""A service's documents in predictd's own collections, and everything that reads them, in this process.

`Stocked` fills a database with one document of each kind, as the daemon writes them. `spoil` puts a value at a place of
one of them, and `read` calls whatever reads that collection: only errors that are meant may come out.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from unittest import mock

from bson import Binary, Code, Decimal128, Int64, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from pymongo import MongoClient
from pymongo.database import Database

from components.errors import PredictdError
from daemon.cli import command, main
from daemon.handlers.predict.records import Letter
from daemon.health.job_report import JobError, JobProgress
from daemon.health.service_status import ConfigState, Owner, RunningJob, ServiceStatus, WorkerStatus
from daemon.health.worker_report import ListenerReport, ScanReport, StreamReport
from daemon.store import names
from daemon.store.connection import open_client, open_database
from daemon.store.registry.accepted import accepted_settings, keep_settings
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.registry import Registry
from daemon.store.registry.trust import stored_identity
from daemon.store.registry.versions import Versions
from daemon.store.rows.dead_letters import DeadLetters
from daemon.store.rows.positions import Position, Positions
from daemon.store.rows.scans import Mark, Scans
from daemon.store.service import notify, services
from daemon.store.service.jobs import Jobs
from daemon.store.service.leases import Holder, Lease
from daemon.store.service.schedules import Schedules
from daemon.store.service.searches import SearchRequests
from daemon.store.service.status import StatusBoard
from harness.keys import KEY
from harness.processes import LISTENER, SERVICE, TABLE, declared

MODEL, EPOCH, MISSING = "f", 3, object()
HOLDER = Holder("a" * 32, "host", 7)
MARK = Mark(1, "scope")


def _nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


ODD: Final[Mapping[str, Any]] = {
    "missing": MISSING,
    "null": None,
    "negative": -5,
    "zero": 0,
    "2^62": Int64(1 << 62),
    "2^63-1": Int64((1 << 63) - 1),
    "NaN": float("nan"),
    "infinite": float("inf"),
    "a decimal": Decimal128("NaN"),
    "a timestamp": Timestamp(1, 1),
    "a regex": Regex("("),
    "nested": _nested(90),
    "a list": [1, "x", None],
    "empty": "",
    "huge": "x" * 300_000,
    "control characters": "a\x1b[2J\x9b\n\u202e",
    "a date before all": datetime(1, 1, 1),  # noqa: DTZ001 - as BSON has it
    "a date after all": DatetimeMS(1 << 60),
    "a document": {"a": 1},
    "an id": ObjectId("0" * 24),
    "code": Code("f"),
    "bytes": Binary(b"\xff", 2),
    "MinKey": MinKey(),
    "true": True,
}


class Stocked:
    """A database with the documents of one service."""

    def __init__(self, uri: str, name: str, folder: Path) -> None:
        self.client = open_client(uri)
        self.database = open_database(self.client, name)
        self._plain: MongoClient[dict[str, Any]] = MongoClient(uri, w=1, journal=False)
        self.raw: Database[dict[str, Any]] = self._plain[name]
        self._file = folder / "service.toml"
        KEY.write(folder / "key")
        self._file.write_text(
            f'[service]\nname = "{SERVICE}"\n[mongo]\nuri = "{uri}"\ndatabase = "{name}"\n'
            '[security]\nsigning_key_file = "key"\n'
        )
        self.registry = Registry(self.database, SERVICE, EPOCH, KEY)
        self.versions = Versions(self.database, SERVICE, MODEL, self.registry.trust)
        self.jobs = Jobs(self.database, SERVICE)
        self._fill()
        self.documents = {
            collection: list(self.raw[collection].find())
            for collection in self.raw.list_collection_names()
            if collection.startswith("_predictd.")
        }
        (self.job,) = [each["_id"] for each in self.documents[names.JOBS] if each["state"] == "failed"]

    def close(self) -> None:
        self.client.close()
        self._plain.close()

    # ---- garbage --------------------------------------------------------------------------------------------------

    def places(self) -> Iterator[tuple[str, Any, str]]:
        """Each field at each depth of each document: the collection, the `_id`, the path."""
        for collection, documents in self.documents.items():
            for document in documents:
                for path in _paths(document):
                    yield collection, document["_id"], path

    def spoil(self, collection: str, identifier: Any, path: str, value: Any) -> None:
        """Puts a value at a place, or takes away what is there."""
        change = {"$unset": {path: ""}} if value is MISSING else {"$set": {path: value}}
        self.raw[collection].update_one({"_id": identifier}, change)

    def restore(self, spoiled: str) -> None:
        """A collection, and those that its readers change, as they were."""
        for collection in {spoiled, names.COMPONENTS, names.VERSIONS}:
            self.raw[collection].delete_many({})
            self.raw[collection].insert_many(self.documents[collection])

    # ---- readers --------------------------------------------------------------------------------------------------

    def read(self, collection: str) -> None:
        """Calls what reads this collection. Raises AssertionError, or an error that is not meant for a person."""
        for read in self._readers()[collection.split(".")[1]]:
            with suppress(PredictdError):
                read()

    def _readers(self) -> Mapping[str, tuple[Callable[[], Any], ...]]:
        scans = Scans(self.database, SERVICE, LISTENER, EPOCH)
        positions = Positions(self.database, SERVICE, "w", EPOCH)
        letters = DeadLetters(self.database, SERVICE, LISTENER, TABLE)
        versions, jobs = self.versions, self.jobs
        weights = (lambda: [versions.weights(each) for each in versions.listed() if each.weights is not None],)
        return {
            "components": (
                self.registry.read,
                lambda: self.registry.absent("model", "none"),
                lambda: self.registry.publish(declared()),
                self.registry.read,
                lambda: versions.promote(1, reason="again"),
                lambda: self._commands("status", "tables", "models"),
            ),
            "versions": (
                versions.live,
                lambda: versions.rollback("back"),
                lambda: versions.prune(1),
                lambda: self._commands("models", "versions f", "versions f --json"),
            ),
            "weights": weights,
            "artifacts": (lambda: Artifacts(self.database).blob("d" * 64), Artifacts(self.database).prune),
            "jobs": (
                lambda: jobs.claim(EPOCH + 1, [], []),
                lambda: jobs.claim(EPOCH + 1, []),
                jobs.untidy,
                lambda: self._commands("jobs", "jobs --json", f"jobs show {self.job}", f"jobs logs {self.job}"),
            ),
            "schedules": (lambda: Schedules(self.database, SERVICE).states({"train/f/every": 3}),),
            "scans": (
                lambda: scans.due(MARK, "oldest"),
                lambda: scans.begin(MARK, "again", "oldest"),
                lambda: self._commands("promote f 2"),
            ),
            "positions": (
                lambda: positions.claim("filter"),
                lambda: positions.save(Position(Timestamp(9, 1)), "filter"),
                lambda: positions.claim("filter"),
            ),
            "dead_letters": (
                letters.load,
                lambda: letters.settled(_letter().name, b"in", 1, scanned=True),
                lambda: letters.add([_letter()]),
                lambda: self._commands(
                    "dead-letters list", "dead-letters list --json", f"dead-letters show {LISTENER}/1",
                    "dead-letters retry --all",
                ),
            ),
            "leases": (
                lambda: services.served(self.database),
                Lease(self.database, SERVICE, HOLDER).holder,
                lambda: Lease(self.database, SERVICE, HOLDER).renew(1),
                Lease(self.database, SERVICE, Holder("b" * 32, "h", 8)).acquire,
                Lease(self.database, SERVICE, HOLDER).acquire,
            ),
            "bells": (
                lambda: notify.count(self.database, SERVICE),
                lambda: notify.ring(self.database, SERVICE),
                lambda: notify.count(self.database, SERVICE),
            ),
            "status": (
                lambda: StatusBoard(self.database, SERVICE).read(),
                lambda: self._commands("status", "status --json"),
                lambda: _publish(self.database),
            ),
            "requests": (),
            "searches": (
                lambda: SearchRequests(self.database, SERVICE, "w").waiting(),
                lambda: SearchRequests(self.database, SERVICE, "w").next(["i"], ["i"]),
                lambda: SearchRequests(self.database, SERVICE, "w").fail_claimed("it ended"),
            ),
            "services": (
                lambda: stored_identity(self.database, SERVICE),
                lambda: accepted_settings(self.database, SERVICE, self.registry.trust),
                self.registry.read,
            ),
        }  # fmt: skip

    def command(self, command_line: str) -> int:
        """Runs a command; it ends with a small number, and prints nothing that controls a terminal."""
        written, code = io.StringIO(), 0
        shared = mock.patch.object(command, "open_client", return_value=_Kept(self.client))
        arguments = mock.patch.object(sys, "argv", ["predictd", *command_line.split(), "-c", str(self._file)])
        with shared, arguments, redirect_stdout(written), redirect_stderr(written):
            try:
                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else -1
        text = written.getvalue()
        assert code in (0, 1, 2), (command_line, code, text)
        assert not set(text) & set("\x1b\x9b\u202e"), (command_line, text)
        return code

    def _commands(self, *command_lines: str) -> None:
        for each in command_lines:
            self.command(each)

    # ---- what there is --------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        for _ in range(EPOCH):
            Lease(self.database, SERVICE, HOLDER).acquire()
        self.registry.publish(declared())
        keep_settings(self.database, SERVICE, self.registry.trust, {"guard.unset_share": 0.1})
        signature = self.registry.read().models[MODEL].signature
        for parent in (None, 1):
            self.versions.add(
                b"abc", "c", signature=signature, source="", object_signature="", origin="o", parent=parent,
                trained=True, job="j", metrics={"v/acc": 0.5}, metric_values={"v/acc": [0.1]}, metric_steps=[1],
                data={"rows": 3, "query": '{"table": "rows", "where": {"a": 1}}', "at": Timestamp(5, 1)},
                history=[{"step": 1, "loss": 0.5}],
            )  # fmt: skip
        self.versions.promote(1, reason="r")
        self.versions.promote(2, reason="r")
        self.versions.validated(2, "v", {"acc": 0.4}, "job")
        scans = Scans(self.database, SERVICE, LISTENER, EPOCH)
        scans.progress(scans.begin(MARK, "first start", "oldest"), 5, 10)
        Artifacts(self.database).put([("d" * 64, b"abc")])
        self._jobs()
        _publish(self.database)
        Schedules(self.database, SERVICE).states({"train/f/every": 3})
        DeadLetters(self.database, SERVICE, LISTENER, TABLE).add([_letter()])
        positions = Positions(self.database, SERVICE, "w", EPOCH)
        positions.claim("filter")
        positions.save(Position(Timestamp(5, 1), {"_data": "8200"}), "filter")
        notify.ring(self.database, SERVICE)
        self.raw[names.SEARCHES].insert_one({"service": SERVICE, "index": "i", "like": {"x": 1}, "n": 3})

    def _jobs(self) -> None:
        trainer = f"{SERVICE}/trainer/{MODEL}"
        known = {"service": SERVICE, "kind": "trainer", "name": MODEL, "state": "applied"}
        self.raw[names.COMPONENTS].insert_one({"_id": trainer, **known, "declaration": '{"model": "f"}'})
        for _ in range(2):
            self.jobs.queue("train", MODEL, {"by": "hand"})
        job = self.jobs.claim(EPOCH, [])
        assert job is not None
        self.jobs.progress(job.id, EPOCH, JobProgress(step=1, total=2, loss=0.1), ["line"], ran=1.5, threads=2)
        self.jobs.fail(job.id, EPOCH, JobError("E", "m", "trace"), None)


class _Kept:
    """A client that stays open."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def close(self) -> None:
        """Another command uses it next."""


def _letter() -> Letter:
    return Letter(1, b"in", 1, 1, "predict", "E", "m", "trace\nback")


def _publish(database: Any) -> None:
    scan = ScanReport(1, 2, 3.0, 4.0, "r")
    report = ListenerReport("running", None, 1, 1, 0.5, {"live": 1, "scan": 2}, scan, {"predicted": 3}, 1)
    stream = StreamReport(open=True, keys=1, opened=1)
    worker = WorkerStatus("running", True, 1, 0, None, {LISTENER: report}, stream, {"L.predict": 0.1}, 1)
    job = RunningJob("s/train/f/x", "train", MODEL, MODEL, 1, 2.0, 5, JobProgress(step=1))
    StatusBoard(database, SERVICE).publish(
        EPOCH,
        ServiceStatus(
            SERVICE, "active", True, None, {"w": worker}, ConfigState(), (job,), (LISTENER,), {"model/q": "why"},
            Owner("host", 1), "127.0.0.1:1",
        ),
    )  # fmt: skip


def _paths(document: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in document.items():
        path = f"{before}{name}"
        if path == "_id":
            continue
        yield path
        if isinstance(value, Mapping):
            yield from _paths(value, f"{path}.")
        elif isinstance(value, list) and value:
            yield f"{path}.0"
            yield from _paths(value[0], f"{path}.0.") if isinstance(value[0], Mapping) else ()
