"""What a larger machine would do, computed from what the yardstick has measured.

    python -m bench.scale [--json bench/results/yardstick.json]

A row costs the worker, MongoDB and the client a measured CPU time, whatever the rate. A process of a worker computes on
about one core. Each further process reads the whole change stream, which costs MongoDB the measured difference between
one and two processes. So of N processes on C cores, whichever is less binds:

    the processes   N / worker's time a row
    the cores       C / (worker's + client's + MongoDB's for one process + (N - 1) * the further stream's time a row)

What is not in it: MongoDB's disk and locks, the network, models that use more than one core or a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.sides import PREDICTD, ROOT, SHARED

CORES: Final = (2, 4, 8, 16, 32)
MOST_PROCESSES: Final = 64


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU microseconds a row."""

    worker: float
    client: float
    mongod: float
    stream: float
    """Of MongoDB, for each further process."""

    @classmethod
    def of(cls, medians: Mapping[str, Mapping[str, float]]) -> Costs:
        """Those that the yardstick has measured with one kind of work."""
        one, two = medians[PREDICTD], medians[SHARED]
        stream = max(0.0, two["mongod_cpu_us"] - one["mongod_cpu_us"])
        return cls(max(one["cpu_us"], two["cpu_us"]), one["client_cpu_us"], one["mongod_cpu_us"], stream)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine does with the best number of processes."""

    cores: int
    processes: int
    rows_per_second: float
    binds: str


def machine(costs: Costs, cores: int) -> Machine:
    """The best number of processes, the rate, and what binds it."""
    found = []
    for processes in range(1, MOST_PROCESSES + 1):
        by_processes = 1e6 * processes / costs.worker
        a_row = costs.worker + costs.client + costs.mongod + (processes - 1) * costs.stream
        by_cores = 1e6 * cores / a_row
        binds = "the processes" if by_processes < by_cores else "the cores"
        found.append(Machine(cores, processes, min(by_processes, by_cores), binds))
    return max(found, key=lambda each: each.rows_per_second)


def machines(measured: Mapping[str, Any]) -> dict[str, list[Machine]]:
    """For each kind of work that was measured, what machines of `CORES` do."""
    return {
        kind: [machine(Costs.of(told["median"]), cores) for cores in CORES] for kind, told in measured["kinds"].items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "yardstick.json", metavar="PATH")
    given = parser.parse_args()
    shown = Table("work", "cores", "processes", "rows/s", "what binds", title="computed from the yardstick's figures")
    for kind, of in machines(json.loads(given.json.read_text())).items():
        for each in of:
            shown.add_row(kind, f"{each.cores}", f"{each.processes}", f"{each.rows_per_second:,.0f}", each.binds)
    Console().print(shown)


if __name__ == "__main__":
    main()
