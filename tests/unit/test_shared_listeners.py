"""A listener that two processes serve is one listener to whoever looks: readiness, status, metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.cli import screens
from daemon.health.readiness import ServiceState, WorkerState, readiness, service_status, status_line
from daemon.health.worker_report import ListenerReport, ScanReport, StreamReport, WorkerReport, together
from daemon.logs.terminal import Terminal
from daemon.web.metrics import exposition

NOW = 1000.0


def reporting(number: int, samples: Any = (), **listener: Any) -> WorkerState:
    listener = {
        "state": "running",
        "queue": {"live": number, "scan": 0},
        "rows": {"predicted": 10 * number},
        **listener,
    }
    report = WorkerReport(
        "running", number, StreamReport(open=True), None, {"digit": ListenerReport(**listener)}, samples=samples
    )
    return WorkerState(
        f"lenet/{number}", ("digit",), pid=number, started_at=NOW - 9, report=report, reported_at=NOW - number
    )


def service(*workers: WorkerState) -> ServiceState:
    return ServiceState("mnist", role="active", epoch=3, workers=workers)


ONE, TWO = reporting(1), reporting(2, dead_letters=3, lag_seconds=0.5)
DOWN = WorkerState("lenet/2", ("digit",), reason="killed by SIGKILL")


def test_it_is_ready_while_both_processes_are() -> None:
    """The lag is that of the slower one, and so is the age of the report."""
    verdict = readiness(service(ONE, TWO), NOW)
    assert verdict.ready
    assert len(verdict.listeners) == 1
    assert (verdict.listeners["digit"].lag_seconds, verdict.listeners["digit"].report_age_seconds) == (2.5, 2.0)
    assert status_line(service(ONE, TWO), NOW) == "1 listener running, lag 2.5 s"


@pytest.mark.parametrize("workers", [(ONE, DOWN), (DOWN, ONE)])
def test_it_is_not_ready_while_one_is_not_whichever_it_is(workers: tuple[WorkerState, ...]) -> None:
    """The reason names the process."""
    verdict = readiness(service(*workers), NOW)
    assert not verdict.listeners["digit"].ready
    assert verdict.reason == "digit: worker lenet/2 is not running: killed by SIGKILL"
    assert verdict.listeners["digit"].report_age_seconds is None
    shown = service_status(service(*workers), NOW).listeners()["digit"]
    assert (shown.state, shown.reason) == ("starting", "worker lenet/2 is not running: killed by SIGKILL")


def test_its_report_is_the_sum_with_the_worst_state() -> None:
    """Of scans those that still run."""
    failing = replace(TWO.report.listeners["digit"], state="failing", reason="why", generation=4)  # type: ignore[union-attr]
    scanning = ListenerReport("backfilling", generation=3, scan=ScanReport(5, 9, 2.0, 2.0, "first start"))
    whole = together([scanning, failing])
    assert (whole.state, whole.reason, whole.generation, whole.dead_letters) == ("failing", "why", 4, 3)
    assert whole.rows == {"predicted": 20}
    assert whole.queue == {"live": 2, "scan": 0}
    assert whole.scan == scanning.scan
    both = together([scanning, replace(scanning, scan=ScanReport(1, 10, 4.0, 2.25, "first start"))])
    assert both.scan == ScanReport(6, 19, 6.0, 2.25, "first start")


def test_status_shows_one_line_of_it() -> None:
    """With the rows of both."""
    console = Terminal(width=200)
    with console.capture() as captured:
        console.print(screens.status(service_status(service(ONE, TWO), NOW), {}))
    lines = [line for line in captured.get().splitlines() if line.startswith("digit")]
    assert len(lines) == 1
    assert lines[0].split()[1:4] == ["running", "30", "3"]


def test_metrics_have_one_series_which_never_falls_while_one_process_is_restarted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else Prometheus would take the rows of the other one for new ones."""
    monkeypatch.setattr("time.monotonic", lambda: NOW)
    labels = {"listener": "digit", "result": "predicted"}
    samples = (
        ("predictd_rows_total", labels, 8.0),
        ("predictd_queue_depth", {"listener": "digit", "lane": "live"}, 3.0),
    )

    def rows(*workers: WorkerState) -> tuple[float, float]:
        page = exposition(service(*workers))[0].decode()
        found = [s for family in text_string_to_metric_families(page) for s in family.samples]
        total = [s.value for s in found if s.name == "predictd_rows_total"]
        depth = [s.value for s in found if s.name == "predictd_queue_depth"]
        assert (len(total), len(depth)) == (1, 1)
        return total[0], depth[0]

    one, two = reporting(1, samples), reporting(2, samples)
    assert rows(one, two) == (16.0, 6.0)
    assert rows(one, replace(DOWN, counted=samples)) == (16.0, 3.0)
    assert rows(one, replace(two, counted=samples)) == (24.0, 6.0)
