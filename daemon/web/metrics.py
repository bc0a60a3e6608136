"""The metrics page: the supervisor's state and its workers' samples, in Prometheus' text format.

`FAMILIES` lists all names and labels; any other sample is left out, so a worker cannot add an undocumented series.
Workers send cumulative samples under their Prometheus names (`..._total`, `..._bucket`, ...).

A worker's counters begin at zero when it is restarted, which Prometheus' `rate` and `increase` take into account. If
several processes serve a listener, one series is the sum of theirs, with those that have ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemon.health.readiness import STALE_SECONDS, ServiceState, WorkerState, readiness
from daemon.logs.text import escaped


@dataclass(frozen=True, slots=True)
class Family:
    """A metric by its Prometheus name (of a counter without `_total`)."""

    name: str
    type: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()

    @property
    def samples(self) -> tuple[str, ...]:
        """The names its samples carry."""
        suffixes = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}[self.type]
        return tuple(self.name + suffix for suffix in suffixes)


FAMILIES = (
    Family("predictd_lag_seconds", "gauge", "Age of the oldest change that is not yet handled.", ("listener",)),
    Family("predictd_rows", "counter", "Rows by what became of them.", ("listener", "result")),
    Family("predictd_batch_rows", "histogram", "Rows in a batch.", ("listener",)),
    Family("predictd_stage_seconds", "histogram", "Time that a stage takes for a batch.", ("listener", "stage")),
    Family("predictd_queue_depth", "gauge", "Dirty keys that wait.", ("listener", "lane")),
    Family("predictd_stream_keys", "counter", "Keys that the change stream delivered.", ("worker",)),
    Family("predictd_stream_opens", "counter", "Times that the change stream was opened.", ("worker",)),
    Family(
        "predictd_oplog_headroom_ratio",
        "gauge",
        "Share of the oplog's window before the change stream's position.",
        ("worker",),
    ),
    Family("predictd_scan_done_rows", "gauge", "Rows that the running scan has handed out.", ("listener",)),
    Family(
        "predictd_scan_total_rows",
        "gauge",
        "Rows that the running scan will judge, as counted when it began.",
        ("listener",),
    ),
    Family(
        "predictd_worker_restarts",
        "counter",
        "Times that a worker was started again after it ended by itself.",
        ("worker",),
    ),
    Family("predictd_ready", "gauge", "1 while rows of the listener are predicted as they come.", ("listener",)),
    Family("predictd_worker_report_age_seconds", "gauge", "Age of the worker's last report.", ("worker",)),
    Family(
        "predictd_stream_silent_seconds", "gauge", "Time since the server last answered the change stream.", ("worker",)
    ),
    Family("predictd_worker_up", "gauge", "1 while the worker's process runs.", ("worker",)),
    Family(
        "predictd_config_last_reload_successful", "gauge", "1 if service.toml as it was last read is the one that runs."
    ),
    Family("predictd_config_held", "gauge", "1 while service.toml as it was last read waits for a person."),
    Family("predictd_mongo_up", "gauge", "1 while MongoDB answers the supervisor."),
    Family("predictd_refused", "gauge", "Declarations and live versions in the database that are not believed."),
    Family("predictd_version_held", "gauge", "1 while a trained version waits for a person.", ("model",)),
    Family("predictd_leader", "gauge", "1 while this daemon holds the lease of its service."),
)

_BY_SAMPLE = {sample: family for family in FAMILIES for sample in family.samples}

Labels = tuple[tuple[str, str], ...]
Series = dict[tuple[str, Labels], float]


def exposition(state: ServiceState, accept: str = "") -> tuple[bytes, str]:
    """The page and its content type; `accept` is the request's header, which may ask for the OpenMetrics format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(state))
    try:
        encoder, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        encoder, content_type = choose_encoder("")
    return encoder(registry), content_type


class _Collector(Collector):
    """The Prometheus metrics of one state of the service."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """Every family, with or without samples, so that HELP and TYPE are always there."""
        measured: Series = {}
        for worker in self._state.workers:  # several may serve one listener: their samples are added
            for each, value in _measured(worker):
                measured[each] = measured.get(each, 0.0) + value
        series = measured | _own(self._state)
        metrics = {family.name: Metric(family.name, family.help, family.type) for family in FAMILIES}
        for (sample, labels), value in series.items():
            metrics[_BY_SAMPLE[sample].name].add_sample(sample, dict(labels), value)
        return metrics.values()


def _own(state: ServiceState) -> Series:
    """The supervisor's own figures."""
    series: Series = {
        ("predictd_config_last_reload_successful", ()): float(state.config.ok),
        ("predictd_config_held", ()): float(state.config.held is not None),
        ("predictd_mongo_up", ()): float(state.mongo is None),
        ("predictd_leader", ()): float(state.epoch is not None),
        ("predictd_refused", ()): float(len(state.refused)),
    }
    now = time.monotonic()
    for name, verdict in readiness(state, now).listeners.items():
        labels: Labels = (("listener", name),)
        series["predictd_ready", labels] = float(verdict.ready)
        series["predictd_lag_seconds", labels] = verdict.lag_seconds
    for model in state.held:
        series["predictd_version_held", (("model", model),)] = 1.0
    for worker in state.workers:
        labels = (("worker", worker.name),)
        series["predictd_worker_up", labels] = float(worker.up)
        if (age := worker.age(now)) is not None:
            series["predictd_worker_report_age_seconds", labels] = age
        if (silent := worker.silent(now)) is not None:
            series["predictd_stream_silent_seconds", labels] = silent
        series["predictd_worker_restarts_total", labels] = float(worker.restarts)
    return series


def _measured(worker: WorkerState) -> Iterator[tuple[tuple[str, Labels], float]]:
    """The samples of a running worker. If it is silent, its gauges are left out: they may be anything by now."""
    stale = (worker.age(time.monotonic()) or 0.0) > STALE_SECONDS
    now = worker.report.samples if worker.report is not None and worker.up else ()
    for (name, labels, value), gone in [*((each, True) for each in worker.counted), *((each, stale) for each in now)]:
        family = _BY_SAMPLE.get(name)
        if family is None or (gone and family.type == "gauge"):
            continue
        full = {"worker": worker.name, **labels} if "worker" in family.labels else labels
        if full.keys() - {"le"} == set(family.labels):
            yield (name, tuple(sorted((label, escaped(text)) for label, text in full.items()))), value
