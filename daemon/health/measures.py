"""The Prometheus metrics of a worker, in a registry of its own; the supervisor shows them on /metrics.

Every name is documented in docs/operations.md and in `daemon.web.metrics`. `daemon.worker.worker` sets the gauges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from daemon.health.worker_report import Sample

RESULTS = ("predicted", "touched", "unset", "dead", "conflict", "gone")


class WorkerMeasures:
    """The metrics of one worker process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.rows = Counter("predictd_rows", "", ["listener", "result"], registry=self.registry)
        self.batch_rows = Histogram(
            "predictd_batch_rows",
            "",
            ["listener"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "predictd_stage_seconds",
            "",
            ["listener", "stage"],
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
            registry=self.registry,
        )
        self.stream_keys = Counter("predictd_stream_keys", "", registry=self.registry)
        self.stream_opens = Counter("predictd_stream_opens", "", registry=self.registry)
        self.oplog_headroom = Gauge("predictd_oplog_headroom_ratio", "", registry=self.registry)
        self.oplog_headroom.set(math.nan)  # not known
        self.queue_depth = Gauge("predictd_queue_depth", "", ["listener", "lane"], registry=self.registry)
        self.lag_seconds = Gauge("predictd_lag_seconds", "", ["listener"], registry=self.registry)
        self.scan_done = Gauge("predictd_scan_done_rows", "", ["listener"], registry=self.registry)
        self.scan_total = Gauge("predictd_scan_total_rows", "", ["listener"], registry=self.registry)

    def samples(self) -> Iterator[Sample]:
        """Every sample but the creation times."""
        for family in self.registry.collect():
            for sample in family.samples:
                if not sample.name.endswith("_created") and not math.isnan(sample.value):
                    yield sample.name, dict(sample.labels), sample.value


class Measures:
    """The metrics of one listener; its corridor updates them once a batch."""

    def __init__(self, worker: WorkerMeasures, listener: str) -> None:
        self._rows = {result: worker.rows.labels(listener, result) for result in RESULTS}
        self._batch = worker.batch_rows.labels(listener)
        self._stages = {
            stage: worker.stage_seconds.labels(listener, stage) for stage in ("read", "prepare", "predict", "write")
        }
        self.totals = dict.fromkeys(RESULTS, 0)

    def rows(self, **results: int) -> None:
        for result, count in results.items():
            if count:
                self._rows[result].inc(count)
                self.totals[result] += count

    def batch(self, rows: int) -> None:
        self._batch.observe(rows)

    def stage(self, stage: str, seconds: float) -> None:
        self._stages[stage].observe(seconds)
