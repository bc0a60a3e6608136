"""What both kinds of job work with: the declarations, the models, the rows, and the retries of MongoDB."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from components.errors import Fenced, NotApplied
from components.examples import Examples
from components.import_paths import ImportPolicy
from components.key import Key
from daemon.job.assignment import JobAssignment
from daemon.job.reporter import JobReporter
from daemon.store.connection import Data, make_client, open_database, reaching
from daemon.store.mongo_retry import MongoRetry
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.model_loader import Loaded, ModelLoader, until_live
from daemon.store.registry.registry import Registry
from daemon.store.registry.trust import Trust
from daemon.store.rows.datasets import Fields, RowExamples
from daemon.store.service.jobs import Job, Jobs


class Context:
    """One job at work. Its methods wait until MongoDB answers, and raise Stopping if it is away while the job is to
    stop.
    """

    def __init__(
        self, assignment: JobAssignment, voice: JobReporter, patience: MongoRetry, stopping: threading.Event
    ) -> None:
        self.assignment = assignment
        self.voice = voice
        self.patience = patience
        self._stopping = stopping
        self.database: Data = patience("mongodb", self._connect)
        trust = Trust.decoded(assignment.trust, voice.signer)
        self.registry = Registry(self.database, assignment.service, assignment.epoch, trust)
        self.loader = ModelLoader(self.database, assignment.service, ImportPolicy(assignment.allow_imports), trust)

    @property
    def fence(self) -> tuple[str, int]:
        """What a promotion requires: this job, running under this epoch."""
        return self.assignment.job, self.assignment.epoch

    def job(self) -> Job:
        """The job. Raises Fenced if it is no longer ours."""
        job = self.patience("job", lambda: Jobs(self.database, self.assignment.service).get(self.assignment.job))
        assignment = self.assignment
        if job is None or (job.id, job.state, job.epoch) != (assignment.job, "running", assignment.epoch):
            raise Fenced(f"job {self.assignment.job} was cancelled, or is another leader's")
        return job

    def declared(self, kind: str, name: str) -> tuple[Component[Any], Catalog]:
        """A component, and all that was applied at that moment. Raises NotApplied, with the reason."""
        known = self.patience("registry", self.registry.read)
        component = known.of(kind).get(name)
        if component is None:
            raise NotApplied(known.refused.get(f"{kind}/{name}") or self.registry.absent(kind, name))
        return component, known

    def live(self, model: str) -> tuple[Component[Any], Loaded]:
        """A model with its live version's weights; its first version is made here, where nobody has yet."""
        return until_live(
            lambda: self.declared("model", model)[0].served,
            lambda component: self.patience("model", lambda: self.loader.loaded(component)),
        )

    def rows(self, table: str, key: Any, ids: Sequence[Any], known: Catalog) -> Examples:
        """The rows of a table by the places of their ids, with the fields of a key."""
        return _Patient(
            self, RowExamples(self.assignment.uri, self.database.name, table, self.fields(table, key, known), ids)
        )

    def fields(self, table: str, key: Any, known: Catalog) -> Fields:
        """The fields of a key of examples with their datatypes. Raises NotApplied if the table is not applied."""
        if table not in known.tables:
            raise NotApplied(known.refused.get(f"table/{table}") or self.registry.absent("table", table))
        types = known.fields(table)
        return [(path, types.get(path)) for path in Key.parse(key, target=True).fields]

    def stopped(self) -> str | None:
        """Why the job is to stop now, else None. Each call counts as progress."""
        self.voice.moved()
        return "the daemon asked it to stop" if self._stopping.is_set() else None

    def _connect(self) -> Data:
        client = make_client(self.assignment.uri, "predictd job", socketTimeoutMS=60_000, tz_aware=True)
        return open_database(client, self.assignment.database)


class _Patient:
    """Rows whose reads are retried while MongoDB is away."""

    def __init__(self, context: Context, rows: RowExamples) -> None:
        self._context = context
        self._rows = rows
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, place: int) -> str:
        """A row's `_id`."""
        return self._rows.name(place)

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...] | None]:
        """See `components.examples.Examples`. In a process that was forked from the job's, raises MongoUnavailable."""
        if os.getpid() != self._process:  # a worker of the data loader: its parent process retries, and reports that
            with reaching():
                return self._rows.fetch(places)
        fetched = self._context.patience("rows", lambda: self._rows.fetch(places))
        self._context.voice.moved()
        return fetched
