"""Reports of workers and jobs of any shape: refused, or a record that every view of it can show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import bson
from fuzz.target import PLAIN, Target
from hypothesis import strategies as st
from rich.console import Console

from daemon.cli import screens
from daemon.health.job_report import JobReport
from daemon.health.readiness import ServiceState, WorkerState, readiness, service_status, status_line, stuck
from daemon.health.report import ReportRefused
from daemon.health.service_status import ServiceStatus
from daemon.health.worker_report import WorkerReport
from daemon.web.metrics import exposition

WORKER: dict[str, Any] = json.loads(
    '{"state": "running", "pid": 7, "stream": {"open": true, "keys": 3, "opened": 1}, "busy": {"L.predict": 0.5},'
    ' "samples": [["predictd_rows_total", {"listener": "L", "result": "predicted"}, 3]], "threads": 1,'
    ' "listeners": {"L": {"state": "backfilling", "generation": 2, "version": 3, "lag_seconds": 0.2, "queue":'
    ' {"live": 3}, "rows": {"predicted": 1}, "dead_letters": 1, "scan": {"done": 5, "total": 9, "rate": 1.5,'
    ' "eta_seconds": 2.0, "reason": "it is new"}}}}'
)
JOB: dict[str, Any] = json.loads(
    '{"state": "failed", "doing": "training", "pid": 7, "progress": {"step": 5, "total": 9, "loss": 0.5,'
    ' "metrics": {"a": 0.5}}, "log": ["x"], "result": {"version": 2, "metrics": {"a": 0.5}}, "still": 1.5,'
    ' "error": {"type": "E", "message": "m", "traceback": "t"}}'
)
ANY = st.recursive(
    PLAIN | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A report with one or two places exchanged, or bytes."""
    report = json.loads(json.dumps(draw(st.sampled_from([WORKER, JOB]))))
    for _ in range(draw(st.integers(1, 2))):
        where: Any = report
        while True:
            names = list(where) if isinstance(where, dict) else list(range(len(where)))
            if not names:
                break
            name = draw(st.sampled_from(names))
            if isinstance(where[name], (dict, list)) and draw(st.booleans()):
                where = where[name]
                continue
            where[name] = draw(ANY)
            break
    line: bytes = draw(st.binary(max_size=60) | st.just(json.dumps(report).encode("utf-8", "surrogatepass")))
    return line


@contextmanager
def target(_folder: Path) -> Iterator[Target]:
    yield Target(lines(), _check)


def _check(line: bytes) -> None:
    with suppress(ReportRefused):
        bson.encode(json.loads(JobReport.from_json(line).to_json()))
    with suppress(ReportRefused):
        _show(WorkerReport.from_json(line))


def _show(report: WorkerReport) -> None:
    state = ServiceState("s", "active", epoch=1, workers=(WorkerState("w", ("L",), 7, 0.0, report, 1.0),))
    readiness(state, 2.0)
    status_line(state, 2.0)
    stuck(state.workers[0], 2.0, 30.0)
    exposition(state)
    stored = bson.decode(bson.encode(service_status(state, 2.0).document()))
    Console(file=StringIO(), width=80).print(screens.status(ServiceStatus.from_document(stored), {}))
