"""How many threads a worker's libraries should use: the daemon's own choice beside one thread for each worker and all
cores for each, with 1, 2 and 4 workers. Each daemon predicts the same bursts; a figure is the median of their seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from pymongo.collection import Collection
from rich.console import Console
from rich.table import Table

from bench.sides import ROOT
from daemon.demo.process import Daemon
from daemon.store.connection import open_database
from examples.digits import digits, png

SERVICE: Final = "threads"
CORES: Final = len(os.sched_getaffinity(0))
CHOICES: Final[dict[str, dict[str, str]]] = {
    "predictd's choice": {},
    "one each": {"OMP_NUM_THREADS": "1"},
    "all cores each": {"OMP_NUM_THREADS": str(CORES)},
}
HEAD: Final = """
[service]
name = "threads"
[mongo]
database = "threads"
[security]
allow_imports = ["bench"]
"""
WORKER: Final = """
[tables.rows{n}]
fields = {{ img = "pil_image" }}
[models.net{n}]
object = "bench.convolutions:Net"
preprocess_batch = "bench.convolutions:preprocess_batch"
postprocess = "bench.convolutions:postprocess"
device = "cpu"
[listeners.net{n}]
table = "rows{n}"
key = "img"
model = "net{n}"
"""


def complete(missing: list[tuple[Collection[dict[str, Any]], dict[str, Any]]]) -> bool:
    """Whether no row of any table is without an output."""
    return all(table.find_one(where, {"_id": 1}) is None for table, where in missing)


def seconds(workers: int, settings: dict[str, str], rows: int, runs: int, console: Console) -> float:
    """Starts a daemon, and returns the median seconds of a burst of rows for each worker, after one that warms up."""
    images = [png(image) for image, _ in digits(rows)]
    service = HEAD + "".join(WORKER.format(n=n) for n in range(workers))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="predictd-threads-")))
        unset = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "")
        daemon = Daemon(folder, service, {**unset, **settings})
        stack.callback(daemon.end)
        daemon.until_ready(console)
        client: MongoClient[dict[str, Any]] = stack.enter_context(MongoClient(daemon.uri()))
        tables = [open_database(client, SERVICE)[f"rows{n}"] for n in range(workers)]
        taken = []
        for _ in range(runs + 1):
            began = time.monotonic()
            for table in tables:
                table.insert_many({"img": image} for image in images)
            missing = [(table, {f"_outputs.net{n}.value": {"$exists": False}}) for n, table in enumerate(tables)]
            daemon.until("every output", partial(complete, missing), 300.0, pause=0.02)
            taken.append(time.monotonic() - began)
        return statistics.median(taken[1:])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.threads", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=3, help="bursts of each (3)")
    parser.add_argument("--rows", type=int, default=500, help="rows of a burst for each worker (500)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of workers (1 2 4)")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "threads.json", metavar="PATH")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    shown = Table(title=f"seconds of a burst of {given.rows} rows for each worker, on {CORES} cores")
    for heading in ("workers", *CHOICES, "choice by the better of the others"):
        shown.add_column(heading, justify="right")
    figures: dict[str, Any] = {}
    for workers in given.workers:
        quiet = Console(quiet=True)
        taken = {name: seconds(workers, more, given.rows, given.runs, quiet) for name, more in CHOICES.items()}
        own, *others = taken.values()
        figures[str(workers)] = {**taken, "ratio": own / min(others)}
        shown.add_row(str(workers), *(f"{each:.2f}" for each in taken.values()), f"{own / min(others):.2f}")
    console.print(shown)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
