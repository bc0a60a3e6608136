"""Watches a soak while it runs: what must never fall, and how much memory each process takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psutil
from harness.trainings import Site
from pymongo.collection import Collection
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from daemon.store import names
from daemon.store.partition import shares
from faults.chaos import worker_pids
from faults.soak_service import QUIET

WARM_UP_SECONDS = 90.0
WINDOW_SECONDS = 30.0
GROWTH = 0.10
MEBIBYTE = 1 << 20


@dataclass
class Memory:
    """The resident and the private bytes of one process, by the seconds since it was first seen."""

    name: str
    pid: int
    since: float
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def after_warm_up(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Resident and private mebibytes after the warm-up and at the end, each the median of some samples; None if the
        process did not live long enough.
        """
        if not self.samples or self.samples[-1][0] < WARM_UP_SECONDS + 2 * WINDOW_SECONDS:
            return None
        end = self.samples[-1][0]
        early = [each for each in self.samples if 0 <= each[0] - WARM_UP_SECONDS < WINDOW_SECONDS]
        late = [each for each in self.samples if each[0] > end - WINDOW_SECONDS]
        return _medians(early), _medians(late)


def _medians(samples: list[tuple[float, int, int]]) -> tuple[float, float]:
    return median(each[1] for each in samples) / MEBIBYTE, median(each[2] for each in samples) / MEBIBYTE


class Witness(threading.Thread):
    """Samples the daemon of a site every second or two; `wrong` has what should never have been seen."""

    def __init__(self, site: Site) -> None:
        super().__init__(name="witness", daemon=True)
        self._site = site
        self._end = threading.Event()
        self._highest: dict[Hashable, Any] = {}
        self._by_pid: dict[tuple[str, int], Memory] = {}
        self._quiet: int | None = None
        self.wrong: list[str] = []
        self.epochs = self.unready = self.looks = 0

    def stop(self) -> None:
        self._end.set()
        self.join(60)

    def run(self) -> None:
        while not self._end.wait(1.5):
            with suppress(PyMongoError):  # MongoDB is away just now
                self._look_at_what_rises()
            self._look_at_processes()

    def _look_at_what_rises(self) -> None:
        for found in self._durable(names.POSITIONS).find():
            self._rises(("position", found["_id"], "epoch"), found.get("epoch"))
            for number, share in enumerate(shares(found)):
                self._rises(("position", found["_id"], number), share.get("cluster_time"))
        for found in self._durable(names.LEASES).find():
            self._rises(("lease", found["_id"], "epoch"), found.get("epoch"))
            self.epochs = max(self.epochs, found["epoch"])
        for found in self._durable(names.COMPONENTS).find({"generation": {"$exists": True}}, {"generation": 1}):
            self._rises(("component", found["_id"], "generation"), found["generation"])

    def _durable(self, name: str) -> Collection[dict[str, Any]]:
        """Read from it, nothing is seen that a mongod which is killed just now would lose."""
        return self._site.data.get_collection(name, read_concern=ReadConcern("majority"))

    def _rises(self, name: Hashable, value: Any) -> None:
        highest = self._highest.get(name)
        if value is None or (highest is not None and value < highest):
            self.wrong.append(f"{name} fell from {highest} to {value}")
        else:
            self._highest[name] = value

    def _look_at_processes(self) -> None:
        daemon = self._site.daemon
        if daemon is None:
            return
        self.looks += 1
        answer = daemon.get("/readyz", patience=1.0)
        self.unready += answer is None or answer.status_code != 200
        self._quiet = worker_pids(self._site).get(QUIET, self._quiet)
        for name, pid in self._watched():
            try:
                memory = psutil.Process(pid).memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            seen = self._by_pid.setdefault((name, pid), Memory(name, pid, time.monotonic()))
            seen.samples.append((time.monotonic() - seen.since, memory.rss, memory.uss))

    def _watched(self) -> Iterator[tuple[str, int]]:
        if self._site.daemon is not None and self._site.daemon.process.poll() is None:
            yield "supervisor", self._site.daemon.process.pid
            for nursery in self._site.processes("daemon.engine.fork_server"):
                yield "nursery", nursery.pid
            if self._quiet:
                yield f"worker {QUIET}", self._quiet

    # ---- at the end -----------------------------------------------------------------------------------------------

    def memory(self) -> Mapping[str, Memory]:
        """Of each watched process the one that lived longest."""
        longest: dict[str, Memory] = {}
        for memory in self._by_pid.values():
            if memory.samples and (
                memory.name not in longest or memory.samples[-1][0] > longest[memory.name].samples[-1][0]
            ):
                longest[memory.name] = memory
        return longest

    def grown(self) -> list[str]:
        """Each process whose resident memory grew by more than `GROWTH` after its warm-up."""
        return [
            f"the resident memory of the {name} (pid {memory.pid}) went from {early:.1f} to {late:.1f} MiB"
            for name, memory in self.memory().items()
            if (found := memory.after_warm_up()) and (late := found[1][0]) > (early := found[0][0]) * (1 + GROWTH)
        ]
