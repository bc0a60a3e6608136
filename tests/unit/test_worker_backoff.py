"""When a worker that ended is started again: at once if it got further, else later each time, and never for ever."""

from __future__ import annotations

from daemon.health.worker_report import ListenerReport, StreamReport, WorkerReport
from daemon.supervisor.fleet import AT_ONCE, Backoff, further


def report(settled: int = 0, **rows: int) -> WorkerReport:
    return WorkerReport(
        "running", 7, StreamReport(open=True), listeners={"l": ListenerReport("running", rows=rows)}, settled=settled
    )


def test_a_worker_got_further_if_it_finished_a_batch_or_learned_from_a_death() -> None:
    """One that ended before did not, nor one that never reported."""
    assert further(report(predicted=1))
    assert further(report(settled=1))
    assert not further(report(predicted=0))
    assert not further(None)


def test_only_a_worker_that_got_no_further_waits_longer_each_time() -> None:
    """Those that got further neither wait nor make others wait longer."""
    backoff = Backoff(clock=lambda: 0.0)
    assert [backoff.delay(0.2, further=True) for _ in range(10)] == [0.0] * 10
    assert 0.3 < backoff.delay(0.2) <= 0.5
    assert backoff.delay(0.2, further=True) == 0.0
    assert 0.7 < backoff.delay(0.2) <= 1.0
    assert 0.3 < backoff.delay(60.0) <= 0.5, "a minute of health ends it"


def test_the_starts_in_a_minute_are_bounded() -> None:
    """A model that ends its process for every row gets further with each death, and yet is not started for ever."""
    now, starts = 0.0, []
    backoff = Backoff(clock=lambda: now)
    while now < 600.0:
        starts.append(now)
        now += 0.5 + backoff.delay(0.5, further=True)
    for begin in range(0, 540, 20):
        assert sum(begin <= start < begin + 60 for start in starts) <= AT_ONCE + 12
