"""What a worker reports: written by the worker, one line of JSON each; read by the supervisor.

{"state", "reason", "ending", "threads", "pid", "busy": {"listener.stage": seconds},
 "settled": rows, "samples": [[name, {label: value}, number], ...],
 "listeners": {name: {"state", "reason", "generation", "version", "lag_seconds", "queue": {lane: keys},
                      "rows": {result: rows}, "dead_letters", "scan": null or
                          {"done", "total", "rate", "eta_seconds", "reason"}}},
 "stream": {"open", "keys", "opened", "silent_seconds", "place"}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeVar, get_args

from daemon.health.report import Count, Ending, Name, Report, Seconds, reported

ListenerPhase = Literal["running", "backfilling", "careful", "starting", "waiting", "missing", "failing"]
"""The worse a phase is, the later it stands here."""

WorkerPhase = Literal["starting", "running", "waiting", "stopping", "failed"]

K = TypeVar("K", bound=str)
N = TypeVar("N", int, float)

Sample = tuple[str, Mapping[str, str], float]
"""A Prometheus sample: its name, its labels, its value."""


@dataclass(frozen=True, slots=True)
class ScanReport:
    """How far a scan is. `total` is the number of rows when it began; `rate` is in rows a second."""

    done: Count
    total: Count | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ListenerReport:
    """One listener. `rows` counts the rows of this process by their result, `queue` the keys in each lane."""

    state: ListenerPhase
    reason: str | None = None
    generation: Count = 0
    version: Count = 0
    lag_seconds: Seconds = 0.0
    queue: Mapping[Literal["live", "scan"], Count] = field(default_factory=dict)
    scan: ScanReport | None = None
    rows: Mapping[Name, Count] = field(default_factory=dict)
    dead_letters: Count = 0

    @property
    def trouble(self) -> str | None:
        """Why its rows are not predicted as they come; None if they are."""
        if self.state in ("running", "backfilling", "careful"):
            return None
        return f"{self.state}: {self.reason}" if self.reason else self.state

    @property
    def backfill(self) -> str | None:
        """How far its scan is; None if none runs."""
        if self.scan is None:
            return None
        return f"backfilling: {self.scan.done} of {'?' if self.scan.total is None else self.scan.total} rows"


_PHASES: Final = get_args(ListenerPhase)


def together(reports: Sequence[ListenerReport]) -> ListenerReport:
    """The report of a listener that several processes serve, from one report of each: the worst state, all rows."""
    if len(reports) == 1:
        return reports[0]
    worst = max(reports, key=lambda each: (_PHASES.index(each.state), -each.generation))
    return replace(
        worst,
        lag_seconds=max(each.lag_seconds for each in reports),
        queue=_sums([each.queue for each in reports]),
        scan=_scans([each.scan for each in reports if each.scan is not None]),
        rows=_sums([each.rows for each in reports]),
        dead_letters=sum(each.dead_letters for each in reports),
    )


def _sums(counts: Sequence[Mapping[K, int]]) -> dict[K, int]:
    return {name: sum(each.get(name, 0) for each in counts) for name in dict.fromkeys(n for c in counts for n in c)}


def _scans(scans: Sequence[ScanReport]) -> ScanReport | None:
    """The scans of all processes that still scan, as one."""
    if len(scans) < 2:
        return scans[0] if scans else None

    def of_all(figures: Sequence[N | None], total: Callable[[Sequence[N]], N]) -> N | None:
        known = [each for each in figures if each is not None]
        return total(known) if len(known) == len(figures) else None

    return ScanReport(
        sum(each.done for each in scans),
        of_all([each.total for each in scans], sum),
        of_all([each.rate for each in scans], sum),
        of_all([each.eta_seconds for each in scans], max),
        scans[0].reason,
    )


@dataclass(frozen=True, slots=True)
class StreamReport:
    """The change stream: whether it is open, the keys that it delivered, how often it was opened.

    `silent_seconds` is the time since the server last answered, which it does every second; `place` is the cluster time
    that the stream has reached.
    """

    open: bool
    keys: Count = 0
    opened: Count = 0
    silent_seconds: Seconds = 0.0
    place: str | None = None


@reported
@dataclass(frozen=True, slots=True)
class WorkerReport(Report):
    """One worker. `busy` holds for how many seconds each stage ("listener.stage") has worked on its present batch.

    `settled` counts the rows about which something became known because they were at work when a process died: that
    they are suspects, that one died alone, that it may live, that it is guilty.
    """

    state: WorkerPhase
    pid: Count
    stream: StreamReport
    reason: str | None = None
    listeners: Mapping[Name, ListenerReport] = field(default_factory=dict)
    busy: Mapping[Name, Seconds] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    ending: Ending | None = None
    threads: Count | None = None
    settled: Count = 0
