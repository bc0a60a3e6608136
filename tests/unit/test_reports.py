"""The records that workers and jobs report: what is written is read again, and no line does more than be refused."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from daemon.engine.local import LocalEngine
from daemon.health.job_report import JobError, JobProgress, JobReport
from daemon.health.readiness import ServiceState, WorkerState, readiness, service_status, status_line, stuck
from daemon.health.report import ReportRefused
from daemon.health.service_status import ConfigState, RunningJob, ServiceStatus, WorkerStatus
from daemon.health.worker_report import ListenerReport, ScanReport, StreamReport, WorkerReport
from daemon.web.metrics import exposition
from daemon.worker.assignment import WorkerAssignment
from daemon.worker.worker import Worker

WORKER = WorkerReport(
    "waiting",
    7,
    StreamReport(open=True, keys=3, opened=1),
    "read: NotPrimaryError",
    {
        "digit": ListenerReport(
            "backfilling", None, 2, 3, 0.25, {"live": 3}, ScanReport(5, 9, 1.5, 2.0, "it is new"), {"dead": 1}, 1
        )
    },
    {"digit.predict": 0.5},
    (("predictd_batch_rows_sum", {"listener": "digit"}, 8.0),),
)
JOB = JobReport(
    "failed",
    "training",
    7,
    2,
    JobProgress(5, 9, 0.5, 0.1, 100.0, "cpu", {"valid/loss": 0.5}),
    None,
    1.5,
    ("a line",),
    {"version": 2, "promoted": True, "metrics": {"v/acc": 0.9}},
    JobError("ValueError", "why", "Traceback"),
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([2**63, -1, 10**400, "running", "done", 1e308])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def changed(document: Any, value: Any, places: list[int]) -> Any:
    """The document with one of its inner values replaced."""
    if not places or not document or not isinstance(document, (dict, list)):
        return value
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = keys[places[0] % len(keys)]
    copy: Any = document.copy()
    copy[key] = changed(document[key], value, places[1:])
    return copy


def damaged(report: WorkerReport | JobReport) -> st.SearchStrategy[Any]:
    places = st.lists(st.integers(0, 20), min_size=1, max_size=5)
    return st.builds(changed, st.just(json.loads(report.to_json())), VALUES, places)


def test_a_report_is_read_as_it_was_written() -> None:
    """All fields, and the least."""
    least = WorkerReport("starting", 7, StreamReport(open=False))
    for worker in (WORKER, least):
        assert WorkerReport.from_json(worker.to_json().encode()) == worker
    for job in (JOB, JobReport("starting")):
        assert JobReport.from_json(job.to_json().encode()) == job
    assert "\n" not in WORKER.to_json() + JOB.to_json()


class Sent:
    """A channel that keeps what is reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def report(self, line: str) -> None:
        self.lines.append(line)


def reporting(channel: Sent) -> Worker:
    """A worker that has not started."""
    here = Path()
    return Worker(
        WorkerAssignment(
            worker="w", uri="", database="d", service="s", epoch=1, state_dir=here, import_root=here, trust={}
        ),
        channel,  # type: ignore[arg-type]
    )


def test_a_worker_reports_while_it_loads_its_listeners() -> None:
    """A report begins with some of them and ends when there are more."""
    channel = Sent()
    worker = reporting(channel)

    def run(name: str) -> Any:
        its = MagicMock(name=name)
        its.declared.name, its.lag.return_value, its.suspects.settled = name, 0.0, 0
        its.corridor.dirty.depth.return_value, its.scan.report.return_value = {}, None
        its.threads.busy.return_value, its.report.return_value = {}, WORKER.listeners["digit"]
        return its

    first = run("first")
    first.lag.side_effect = lambda: setattr(worker, "runs", [first, run("second")]) or 0.0
    worker.runs = [first]
    for _ in range(2):
        worker.report()
    assert [list(json.loads(line)["listeners"]) for line in channel.lines] == [["first"], ["first", "second"]]


def test_a_worker_reports_an_error_whose_text_is_no_unicode() -> None:
    """The name of a file may be anything; and a password stays out."""
    channel = Sent()
    worker = reporting(channel)
    worker.report("failed", "no file \udcff, mongodb://user:secret@host")
    report = WorkerReport.from_json(channel.lines[-1].encode())
    assert (report.state, report.reason) == ("failed", "no file \\udcff, mongodb://***@host")


def test_unknown_keys_are_ignored() -> None:
    """A newer process may report more than this daemon knows."""
    told = json.loads(WORKER.to_json())
    told["new"] = told["listeners"]["digit"]["new"] = {"deep": [1]}
    assert WorkerReport.from_json(json.dumps(told).encode()) == WORKER


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"state": ' * 100_000,
        b'{"state": "running", "new": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"state": "running", "pid": ' + b"9" * 5000 + b"}",
        b'{"state": "running", "pid": true, "stream": {"open": true}}',
        b'{"state": "running", "pid": 1, "stream": {"open": true}, "busy": {"a.read": NaN}}',
        b'{"state": "running", "pid": 1, "stream": {"open": true}, "busy": {"a.read": 1e999}}',
        b'{"state": "running", "pid": 1, "stream": {"open": true}, "busy": {"a\\u0000": 1}}',
        b'{"state": "running", "pid": 1, "stream": {"open": true}, "reason": "\\ud800"}',
        b'{"state": "AZ", "pid": 1, "stream": {"open": true}}',
    ],
)
def test_a_line_that_is_no_report_is_refused(line: bytes) -> None:
    """By one error, whatever is wrong."""
    with pytest.raises(ReportRefused):
        WorkerReport.from_json(line)


def test_what_is_refused_names_the_value() -> None:
    """Its place in the report, and what is wrong with it."""
    told = json.loads(JOB.to_json())
    told["progress"]["step"] = "5"
    with pytest.raises(ReportRefused, match=r"progress\.step: .*integer"):
        JobReport.from_json(json.dumps(told).encode())


@given(VALUES | damaged(WORKER))
def test_no_worker_report_breaks_its_readers(value: Any) -> None:
    """It is refused, or every reader can use it and BSON can hold it."""
    try:
        report = WorkerReport.from_json(json.dumps(value).encode())
    except ReportRefused:
        return
    worker = WorkerState("lenet", ("digit",), pid=7, started_at=0.0, report=report, reported_at=0.0)
    state = ServiceState("mnist", role="active", epoch=1, workers=(worker,))
    readiness(state, 1.0)
    stuck(worker, 1.0, 30.0)
    status_line(state, 1.0)
    exposition(state)
    status = service_status(state, 1.0)
    assert ServiceStatus.from_document(bson.decode(bson.encode(status.document()))) == status


@given(VALUES | damaged(JOB))
def test_no_job_report_breaks_its_readers(value: Any) -> None:
    """It is refused, or BSON can hold what is relayed from it."""
    try:
        report = JobReport.from_json(json.dumps(value).encode())
    except ReportRefused:
        return
    bson.encode({**JobProgress().updated(report.progress).known(), "result": report.result, "log": list(report.log)})


@given(VALUES | st.dictionaries(st.sampled_from([each.name for each in fields(ServiceStatus)]), VALUES))
def test_no_document_breaks_the_readers_of_a_status(value: Any) -> None:
    """What does not fit reads as its default."""
    status = ServiceStatus.from_document(value if isinstance(value, dict) else {"workers": value})
    assert status.listeners() == {}
    assert not status.ready or value["ready"]


def test_a_damaged_field_of_a_status_leaves_the_others() -> None:
    """A job without a model, a worker without numbers, a configuration that is none."""
    job = RunningJob("s/train/m/1", "train", "m", "m", 1, 0.5)
    good = ServiceStatus("s", "active", ready=True, workers={"w": WorkerStatus("running", up=True)}, jobs=(job,))
    document = good.document() | {"config": {"ok": "odd"}, "paused": [1], "owner": 5}
    assert ServiceStatus.from_document(document) == good
    assert ServiceStatus.from_document(document | {"jobs": [{"job": 1}]}).jobs == ()
    assert ServiceStatus.from_document(document | {"workers": {"w": {"restarts": "x"}}}).workers == {}
    assert good.config == ConfigState()


@given(st.binary())
def test_no_bytes_do_more_than_be_refused(line: bytes) -> None:
    """Neither decoder raises anything else."""
    for decoder in (WorkerReport.from_json, JobReport.from_json):
        with pytest.raises(ReportRefused):
            decoder(line)


@dataclass(frozen=True)
class Reporting:
    """A process that reports what it reads first, and prints it as well, as a worker whose model prints."""

    lines: tuple[str, ...]
    name: str = "lenet"
    module: str = "reporting"
    torch: bool = False
    threads: int | None = None

    def order(self) -> dict[str, Any]:
        return {"lines": self.lines}

    def decode(self, line: bytes) -> WorkerReport:
        return WorkerReport.from_json(line)

    def sign(self, *parts: str) -> str:
        raise AssertionError(parts)


def test_the_last_good_report_stays_and_bad_ones_are_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed is no report, though it looks like one."""
    (tmp_path / "reporting.py").write_text(
        "import json, sys\n"
        "from daemon.engine.child import Channel\n"
        "channel = Channel.open()\n"
        "for line in json.loads(sys.stdin.readline())['lines']:\n"
        "    channel.report(line)\n"
        "    print(line.replace('lenet', 'forged'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines = ("epoch 1", WORKER.to_json(), '{"state": 1}', '{"state": "running", "pid": -1}', '{"a": 1}')

    async def scene() -> WorkerReport | None:
        process = await LocalEngine().start(Reporting(lines), lambda: None)
        assert await process.wait() == 0
        return process.report

    with capture_logs() as logs:
        assert asyncio.run(scene()) == WORKER
    printed = [event["text"] for event in logs if event["event"] == "worker output"]
    assert len(printed) == len(lines)
    (refused,) = [event for event in logs if event["log_level"] == "warning"]
    assert refused["event"] == "a report cannot be used"


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=1.x",
        "application/openmetrics-text;version=\xff",
        f"application/openmetrics-text;version={'9' * 5000}",
        ",;=;;version=,",
    ],
)
def test_a_format_that_nobody_knows_is_the_usual_one(accept: str) -> None:
    """Whatever a client asks for, it gets the metrics."""
    page, content_type = exposition(ServiceState("s"), accept)
    assert b"predictd_lag_seconds" in page
    assert content_type.startswith("text/plain")
