"""The training of the model, as a client sees it in the database.

    validate  a client has the live version measured, before and after
    wait      one more row completes the N of `when = [{ rows = N }]`: the daemon queues a training by itself
    follow    the job's document shows its progress; at its end its version is live
    resync    that version computes every output again
    plot      the metrics and the training of the versions, as a picture

The accuracy is counted in the outputs of rows that no training sees.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from pymongo.collection import Collection
from rich.console import Console

from daemon.api.versions import VersionList
from daemon.demo.process import Daemon, DemoFailed
from daemon.health.job_report import JobProgress
from daemon.logs.terminal import Bar, bar, say
from daemon.logs.text import escaped
from daemon.store import names
from daemon.store.connection import Data
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import Job, Jobs

MODEL, VALIDATION = "lenet", "mnist_performance"
KEPT_APART = "test"
FOLDS = {"train": 0.7, "valid": 0.15, KEPT_APART: 0.15}
"""The parts of the rows for training, for validation during training, and for neither."""

WAIT_SECONDS, VALIDATION_SECONDS, TRAINING_SECONDS, RESYNC_SECONDS = 30.0, 90.0, 300.0, 90.0


@dataclass(frozen=True, slots=True)
class Right:
    """How many of these rows have the right output."""

    right: int
    rows: int

    def __str__(self) -> str:
        return f"{self.right / self.rows:.1%}"


class Training:
    """One training of the demo's model, from the row that sets it off to the last row's new output."""

    def __init__(self, out: Console, daemon: Daemon, database: Data, table: str, listener: str) -> None:
        self._out = out
        self._say = partial(say, out)
        self._daemon = daemon
        self._database = database
        self._rows: Collection[dict[str, Any]] = database[table]
        self._output = f"_outputs.{listener}"
        service = daemon.config.service.name
        self._jobs = Jobs(database, service)
        self._versions = Versions(database, service, MODEL)
        self._service = service
        self.figures: dict[str, str] = {}

    def armed(self) -> None:
        """Waits until the daemon counts new rows: earlier ones do not start a training."""
        counting = {"service": self._service, "key": f"train/{MODEL}/rows", "baseline": {"$ne": None}}
        self._daemon.until(
            "the daemon to count rows", lambda: self._database[names.SCHEDULES].find_one(counting), WAIT_SECONDS
        )

    def live(self) -> int:
        """The number of the live version. Raises DemoFailed if there is none."""
        version = self._versions.live()
        if version is None:
            raise DemoFailed(f"the model {MODEL} has no live version")
        return version.number

    def right(self) -> Right:
        """Counts the rows kept apart whose output equals their class. Raises DemoFailed if there are
        none.
        """
        apart = {"_fold": KEPT_APART, f"{self._output}.value": {"$exists": True}}
        rows = self._rows.count_documents(apart)
        if not rows:
            raise DemoFailed("no row that was kept apart from the training has an output")
        same = {"$expr": {"$eq": [f"${self._output}.value", "$class"]}}
        return Right(self._rows.count_documents(apart | same), rows)

    def validate(self) -> None:
        """Queues a validation of the live version, and waits for its result."""
        asked = self._jobs.queue("validate", VALIDATION, {"by": "the demo"})
        assert asked is not None  # without a key it is always queued
        with bar(self._out, f"validating {MODEL}", transient=True) as show:

            def done() -> Job | None:
                job = self._job(asked)
                show(job.progress.step or 0, job.progress.total, _doing(job.progress))
                return job if job.state == "done" else None

            result = self._daemon.until("the validation to end", done, VALIDATION_SECONDS).result or {}
        found = ", ".join(f"{name} {value:.3f}" for name, value in result["metrics"].items())
        self._say(
            f"validated version {result['version']}, as a client may ask at any time: {found} ({result['rows']} rows)"
        )

    def set_off(self, document: Mapping[str, Any]) -> str:
        """Inserts the missing row; returns the id of the job that the daemon queues for it."""
        count = self._rows.count_documents({}) + 1
        if early := self._trainings():
            raise DemoFailed(f"the training {early[0]} began before there were enough rows for it")
        began = time.perf_counter()
        self._rows.insert_one(dict(document))
        found = self._daemon.until("a training to begin by itself", self._trainings, WAIT_SECONDS, pause=0.02)
        seconds = time.perf_counter() - began
        self._say(
            f"inserted one more row, number {count:,}: {seconds:.1f} s later a training was queued by the daemon "
            f"itself (when = [{{ rows = {count} }}])"
        )
        return found[0]

    def follow(self, identifier: str) -> None:
        """Shows the job until its version is live and every output is of that version."""
        with bar(self._out, f"training {MODEL}", transient=True) as show:
            version = self._daemon.until(
                "the trained version to be live", lambda: self._went_live(identifier, show), TRAINING_SECONDS
            )
        data, [metric, *_] = version.data, list(version.metric_values)
        trace = ", ".join(f"{value:.3g}" for value in version.metric_values[metric])
        self._say(
            f"trained: {data['steps']} steps in {data['seconds']:.1f} s on {data['rows']:,} rows, at low priority "
            f"on {_counted(data['threads'], 'thread')}; {metric} on the way: {trace}"
        )
        self._say(f"version {version.number} is live, from step {data['best_step']}: {escaped(version.reason or '')}")
        count, seconds = self._resync(version)
        rate = f"{count / seconds:,.0f} rows/s"
        self._say(f"every output has followed: {count:,} rows, {seconds:.1f} s after the version went live ({rate})")
        # It has little left to do.
        self._daemon.until("the training to end", lambda: self._job(identifier).state == "done", WAIT_SECONDS)
        self.figures["training"] = f"{data['seconds']:.1f} s ({data['steps']} steps on {data['rows']:,} rows)"
        self.figures["resync"] = f"{rate} ({count:,} rows, from going live to the last output)"

    def plot(self, file: Path) -> None:
        """Draws what `predictd versions lenet --plot FILE` draws. Raises PredictdError if it cannot be written."""
        with self._out.status("drawing the versions"):
            VersionList(MODEL, self._versions.listed()).plot(file)
        self.figures["metrics and losses"] = str(file)

    def _trainings(self) -> list[str]:
        return [job.id for job in self._jobs.listed(kind="train", target=MODEL)]

    def _job(self, identifier: str) -> Job:
        """The job. Raises DemoFailed if it has failed."""
        job = self._jobs.get(identifier)
        if job is None:
            raise DemoFailed(f"the job {identifier} is no longer there")
        if job.state in ("failed", "cancelled"):
            raise DemoFailed(f"{identifier} is {job.state}: {job.why}")
        return job

    def _went_live(self, identifier: str, show: Bar) -> Version | None:
        """The job's version, once it is live; shows how far the job is."""
        job = self._job(identifier)
        show(job.progress.step or 0, job.progress.total, _doing(job.progress))
        live = self._versions.live()
        if live is not None and live.job == identifier:
            return live
        if job.state == "done":
            result = job.result or {}
            raise DemoFailed(f"{identifier} made version {result.get('version')}: {result.get('reason')}")
        return None

    def _resync(self, version: Version) -> tuple[int, float]:
        """Waits until every row's output, or error, is of this version; returns how many rows that are, and the seconds
        since it went live, by the server's clock.
        """
        there = {f"{self._output}.version": version.number}
        total = self._rows.count_documents({})
        with bar(self._out, "outputs follow", total, transient=True) as show:

            def done() -> bool:
                count = self._rows.count_documents(there)
                show(count)
                return count >= total

            self._daemon.until(f"every output to be of version {version.number}", done, RESYNC_SECONDS)
            now: datetime = self._database.command("hello")["localTime"]
        assert version.promoted_at is not None
        return total, (now - version.promoted_at).total_seconds()


def _doing(progress: JobProgress) -> str:
    if progress.loss is not None:
        return f"loss {progress.loss:.3f}"
    return "its process starts" if progress.step is None else ""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
