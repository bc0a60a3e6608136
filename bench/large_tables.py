"""Large tables: a backfill and a resync beside bursts of new rows, the worker's memory meanwhile, and what a page of a
scan costs at the beginning and at the end of a table.

    python -m bench.large_tables [--runs 3] [--rows 10000] [--table 100000] [--small 1000000] [--quick] [--json PATH]

The daemon has an embedded MongoDB and LeNet-5 with the batched preprocess. The rows are inserted while the daemon does
not serve them; then the listener is declared, and the backfill is timed from the first output to the last. Bursts come
after it, then a resync, which predicts each row anew.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psutil
from pymongo import MongoClient
from pymongo.collection import Collection
from rich.console import Console
from rich.table import Table

from bench import arguments
from bench.kinds import pictures
from bench.sides import ROOT, service_toml
from daemon.demo.process import Daemon
from daemon.listeners.scan import PAGE, pages
from daemon.store.connection import open_database
from daemon.store.rows.positions import cluster_time
from daemon.store.service.status import StatusBoard

MIB: Final = 1 << 20
WARM_ROWS: Final = 10_000
SECONDS: Final = 1800.0
OUTPUT: Final = "_outputs.digit"


class Memory:
    """The resident memory of a worker (MiB), from `WARM_ROWS` rows on."""

    def __init__(self, worker: psutil.Process) -> None:
        self._worker = worker
        self.seen: list[float] = []

    def look(self) -> None:
        """Takes one reading."""
        self.seen.append(self._worker.memory_info().rss / MIB)

    @property
    def growth(self) -> float:
        """How far the largest reading is above the first."""
        return max(self.seen) - self.seen[0] if self.seen else 0.0


def predicted(board: StatusBoard) -> int:
    """How many rows the worker has predicted."""
    status = board.read()
    report = None if status is None else status.listeners().get("digit")
    return 0 if report is None else int(report.rows.get("predicted", 0))


def followed(daemon: Daemon, board: StatusBoard, rows: int, memory: Memory, before: int = 0) -> float:
    """Waits until the worker has predicted so many rows; rows/s between the first and the last report of them."""
    seen: list[tuple[float, int]] = []

    def complete() -> bool:
        done = predicted(board) - before
        if done and (not seen or done != seen[-1][1]):
            seen.append((time.monotonic(), done))
        if done >= min(WARM_ROWS, rows // 2):
            memory.look()
        return done >= rows

    daemon.until(f"{rows} predicted rows", complete, SECONDS, pause=0.2)
    (start, first), (end, last) = seen[0], seen[-1]
    return (last - first) / max(end - start, 1e-9)


def burst_rate(daemon: Daemon, table: Collection[dict[str, Any]], images: list[bytes], rows: int) -> float:
    """Rows/s of new rows, from the first insert to the last output."""
    newest = table.find_one(sort=[("_id", -1)])
    assert newest is not None
    began = time.monotonic()
    for start in range(0, rows, 500):
        table.insert_many({"img": images[n % len(images)]} for n in range(start, min(rows, start + 500)))
    missing = {"_id": {"$gt": newest["_id"]}, OUTPUT: {"$exists": False}}
    daemon.until("the burst", lambda: table.find_one(missing, {"_id": 1}) is None, SECONDS, pause=0.05)
    return rows / (time.monotonic() - began)


def page_costs(table: Collection[dict[str, Any]], rows: int) -> tuple[float, float]:
    """Milliseconds of a page of a scan, medians of the first and of the last tenth of the table."""
    table.insert_many(({"_id": n} for n in range(rows)), ordered=False)
    taken: list[float] = []
    began = time.perf_counter()
    for _ in pages(table, cluster_time(table.database), None, resumed=False):
        taken.append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
    tenth = max(1, rows // PAGE // 10)
    return statistics.median(taken[:tenth]), statistics.median(taken[-tenth - 1 : -1])


def measured(rows: int, burst: int, runs: int, small: int) -> dict[str, float]:
    """All figures, by name. rows, burst, small: rows of the table, of each of `runs` bursts, of the table of pages."""
    images = pictures(min(rows, 5000))
    figures: dict[str, float] = {}
    service = service_toml("batched")
    declared, _, listener = service.partition("[listeners.digit]")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="predictd-large-")))
        daemon = Daemon(folder, declared, {"PYTHONPATH": str(ROOT)})
        stack.callback(daemon.end)
        daemon.until_ready(Console(quiet=True))
        client: MongoClient[dict[str, Any]] = stack.enter_context(MongoClient(daemon.uri()))
        table = open_database(client, "yardstick")["mnist"]
        for start in range(0, rows, 5000):
            table.insert_many({"img": images[n % len(images)], "n": n} for n in range(start, min(rows, start + 5000)))
        fresh = daemon.file.with_suffix(".fresh")
        fresh.write_text(f"{declared}[listeners.digit]{listener}")
        fresh.replace(daemon.file)
        board = StatusBoard(open_database(client, "yardstick"), "yardstick")
        memory = Memory(daemon.until("the worker", lambda: _worker(board), 60.0))
        figures["backfill"] = followed(daemon, board, rows, memory)
        figures["backfill_memory"] = memory.growth
        figures["burst"] = statistics.median(burst_rate(daemon, table, images, burst) for _ in range(runs))
        memory = Memory(daemon.until("the worker", lambda: _worker(board), 60.0))
        before = predicted(board)
        subprocess.run([sys.executable, "-m", "daemon.cli", "resync", "digit", "-c", str(daemon.file)], check=True)
        figures["resync"] = followed(daemon, board, table.estimated_document_count(), memory, before)
        figures["resync_memory"] = memory.growth
        figures["page_first_ms"], figures["page_last_ms"] = page_costs(client["yardstick"]["small"], small)
    return figures


def _worker(board: StatusBoard) -> psutil.Process | None:
    """The daemon's worker."""
    status = board.read()
    pid = None if status is None or "lenet" not in status.workers else status.workers["lenet"].pid
    return None if pid is None else psutil.Process(pid)


def main() -> None:
    """The command line."""
    parser = arguments.parser("large_tables", __doc__, runs=3, rows=10_000)
    parser.add_argument("--table", type=int, default=100_000, help="rows of the backfill (100000)")
    parser.add_argument("--small", type=int, default=1_000_000, help="rows of the table of the pages (1000000)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runs, burst = (3, 500) if given.quick else (given.runs, given.rows)
    rows, small = (2_000, 20_000) if given.quick else (given.table, given.small)
    figures = {"rows": rows, "small": small, **measured(rows, burst, runs, small)}
    shown = Table("what", "figure", title=f"a table of {rows:,} rows; one of {small:,} for the pages")
    shown.add_row("backfill, rows/s", f"{figures['backfill']:,.0f}")
    shown.add_row("burst, rows/s", f"{figures['burst']:,.0f}")
    shown.add_row("backfill by burst", f"{figures['backfill'] / figures['burst']:.2f}")
    shown.add_row("worker's growth in the backfill, MiB", f"{figures['backfill_memory']:.1f}")
    shown.add_row("resync, rows/s", f"{figures['resync']:,.0f}")
    shown.add_row("worker's growth in the resync, MiB", f"{figures['resync_memory']:.1f}")
    shown.add_row("page at the beginning, ms", f"{figures['page_first_ms']:.2f}")
    shown.add_row("page at the end, ms", f"{figures['page_last_ms']:.2f}")
    Console().print(shown)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
