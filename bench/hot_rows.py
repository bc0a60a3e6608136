"""What the rows of a table get while four clients update 50 of them as fast as they can.

    python -m bench.hot_rows [--runs 3] [--rows 10000] [--quick] [--json PATH]

The daemon has an embedded MongoDB and LeNet-5 with the batched preprocess. Each run has two bursts of new rows, timed
from the first insert to the last output. In both the four clients are at work: first on 50 rows of a table that nobody
watches, then on 50 rows of the table of the burst, whose images they change. So the clients and MongoDB cost the same.
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from bench import arguments
from bench.kinds import pictures
from bench.large_tables import burst_rate
from bench.sides import ROOT, service_toml
from daemon.demo.process import Daemon
from daemon.store.connection import open_database
from daemon.store.service.status import StatusBoard
from examples.digits import digits, png

CLIENTS: Final = 4
HOT: Final = 50
WATCHED, UNWATCHED = "mnist", "elsewhere"
COUNTED: Final = ("predicted", "conflict", "touched")


def update(uri: str, table: str) -> None:
    """Updates the hot rows of a table until it is stopped, and prints how often a second."""
    images = [png(image) for image, _ in digits(200)]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    done, began = 0, time.monotonic()
    with MongoClient[dict[str, Any]](uri) as client:
        rows = open_database(client, "yardstick")[table]
        print("started", flush=True)
        while not stopped:
            rows.update_one({"_id": random.randrange(HOT)}, {"$set": {"img": random.choice(images)}})
            done += 1
    print(json.dumps(done / (time.monotonic() - began)))


def counts(board: StatusBoard) -> dict[str, int]:
    """What the worker has counted."""
    status = board.read()
    assert status is not None
    return {name: int(status.listeners()["digit"].rows.get(name, 0)) for name in COUNTED}


def _predicted(board: StatusBoard, rows: int) -> bool:
    return counts(board)["predicted"] >= rows


def measured(rows: int, runs: int) -> list[dict[str, dict[str, float]]]:
    """The figures of each run, by the table that the clients update."""
    images = pictures(rows)
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="predictd-hot-")))
        daemon = Daemon(folder, service_toml("batched"), {"PYTHONPATH": str(ROOT)})
        stack.callback(daemon.end)
        daemon.until_ready(Console(quiet=True))
        client: MongoClient[dict[str, Any]] = stack.enter_context(MongoClient(daemon.uri()))
        database = open_database(client, "yardstick")
        board = StatusBoard(database, "yardstick")
        for table in (WATCHED, UNWATCHED):
            database[table].insert_many({"_id": n, "img": images[n % rows]} for n in range(HOT))
        burst_rate(daemon, database[WATCHED], images, 1000)
        for _ in range(runs):
            figures = {}
            for table in (UNWATCHED, WATCHED):
                command = [sys.executable, "-m", "bench.hot_rows", "--update", daemon.uri(), table]
                clients = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(CLIENTS)]
                for each in clients:
                    assert each.stdout is not None
                    each.stdout.readline()  # it has started
                time.sleep(2)
                before = counts(board)
                rate = burst_rate(daemon, database[WATCHED], images, rows)
                for each in clients:
                    each.terminate()
                updates = sum(json.loads(each.communicate()[0]) for each in clients)
                most = before["predicted"] + rows
                daemon.until("the worker's report", partial(_predicted, board, most), 60.0)
                time.sleep(2)
                after = counts(board)
                counted = {name: float(after[name] - before[name]) for name in COUNTED}
                figures[table] = {"rows/s": rate, "updates/s": updates, **counted}
            found.append(figures)
    return found


def main() -> None:
    """The command line."""
    parser = arguments.parser("hot_rows", __doc__, runs=3, rows=10_000)
    parser.add_argument("--update", nargs=2, help=arguments.HIDDEN)
    given = parser.parse_args()
    if given.update:
        return update(*given.update)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows, runs = (500, 1) if given.quick else (given.rows, given.runs)
    found = measured(rows, runs)
    medians = {table: {name: statistics.median(each[table][name] for each in found) for name in of}
               for table, of in found[0].items()}  # fmt: skip
    shown = Table("clients update", *medians[WATCHED], title=f"medians of {runs} bursts of {rows:,} rows")
    for table, of in medians.items():
        shown.add_row("the table of the burst" if table == WATCHED else "another", *(f"{v:,.0f}" for v in of.values()))
    Console().print(shown)
    ratios = [each[WATCHED]["rows/s"] / each[UNWATCHED]["rows/s"] for each in found]
    Console().print(f"the burst with hot rows by the burst without: {', '.join(f'{each:.2f}' for each in ratios)}")
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"medians": medians, "rows": rows, "runs": found}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
