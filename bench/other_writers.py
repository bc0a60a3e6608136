"""What other writers of the same rows feel while outputs are written: the worst case, with no model in between.

    python -m bench.other_writers [--runs 3] [--seconds 4] [--quick] [--json PATH]

A process writes the outputs of 2,048 rows over and over, in batches of 256, as fast as MongoDB takes them. Meanwhile
one client updates single rows among them, and another runs transactions of three rows. Each way of writing takes its
turn in each run: not at all, the guarded bulk, transactions that read the guards, and what predictd does, which
begins with transactions at the snapshot.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.table import Table

from bench import arguments
from daemon.embedded.server import ensure
from daemon.handlers.predict.records import Write
from daemon.listeners.change_stream import watch
from daemon.listeners.subscription import Subscription
from daemon.store.connection import make_client, open_database
from daemon.store.rows import outputs
from daemon.store.rows.positions import Position, cluster_time
from daemon.store.rows.transactions import Aborted, Transactions

ROWS, BATCH = 2048, 256
WAYS = ("nothing", "bulk", "with guards", "predictd")


def _ends_with_input(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def write(uri: str, way: str) -> None:
    """Writes outputs in this way until standard input ends, and prints how many rows landed and missed a second."""
    outputs.FEW = 1_000_000 if way == "bulk" else outputs.FEW  # type: ignore[misc]
    if way == "with guards":
        Transactions.at = _aborted  # type: ignore[assignment,method-assign]
    database = open_database(make_client(uri, "bench", retryWrites=False), "bench")
    mine, ended = outputs.Outputs(database["rows"], "L", ("x",), {}), threading.Event()
    subscription = Subscription("bench", ("rows",), dropped=mine.sessions)
    stream = watch(database, subscription, Position(cluster_time(database)), ended)
    threading.Thread(target=lambda: deque(stream, 0), daemon=True).start()  # a worker's, and it costs the server
    threading.Thread(target=_ends_with_input, args=(ended,), daemon=True).start()
    print("started", flush=True)
    landed, began, number = 0, time.monotonic(), 0
    while not ended.is_set():
        number += 1
        start = number * BATCH % ROWS
        snapshot = mine.read(range(start, start + BATCH), None, 1 << 30)
        writes = [
            Write(row.key, row.seen, "set", snapshot.at, 1, {"value": number, "generation": 1, "asof": snapshot.at})
            for row in snapshot.rows
        ]
        landed += len(writes) - len(mine.write(writes).missed)
    print(json.dumps({"rows a second": landed / (time.monotonic() - began)}))


def _aborted(*_: Any) -> Any:
    raise Aborted("not in this way")


def turn(uri: str, way: str, seconds: float) -> dict[str, float]:
    """One way's turn: the writer's rate, the single updates' milliseconds, and the share of transactions aborted."""
    writer = None
    if way != "nothing":
        command = [sys.executable, "-m", "bench.other_writers", "--write", uri, way]
        writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()  # it has started
    took: list[float] = []
    runs, aborted = 0, 0
    end = time.monotonic() + seconds

    def single() -> None:
        with MongoClient[dict[str, Any]](uri) as client:
            while time.monotonic() < end:
                began = time.perf_counter()
                client["bench"]["rows"].update_one({"_id": random.randrange(ROWS)}, {"$set": {"other": began}})
                took.append(1000 * (time.perf_counter() - began))
                time.sleep(0.001)

    thread = threading.Thread(target=single)
    thread.start()
    with MongoClient[dict[str, Any]](uri) as client, client.start_session() as session:
        while time.monotonic() < end:
            runs += 1
            try:
                with session.start_transaction():
                    for key in random.sample(range(ROWS), 3):
                        client["bench"]["rows"].update_one({"_id": key}, {"$set": {"own": runs}}, session=session)
            except PyMongoError:
                aborted += 1
            time.sleep(0.001)
    thread.join()
    told = {} if writer is None else json.loads(writer.communicate()[0])
    took.sort()
    return {
        "rows a second": told.get("rows a second", 0.0),
        "p50, ms": took[len(took) // 2],
        "p99, ms": took[len(took) * 99 // 100],
        "aborted, %": 100 * aborted / runs,
    }


def main() -> None:
    """The command line."""
    parser = arguments.parser("other_writers", __doc__, runs=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn (4)")
    parser.add_argument("--write", nargs=2, help=arguments.HIDDEN)
    given = parser.parse_args()
    if given.write:
        return write(*given.write)
    runs, seconds = (1, 1.0) if given.quick else (given.runs, given.seconds)
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="predictd-bench-") as folder, ensure(Path(folder)) as mongo:
        with MongoClient[dict[str, Any]](mongo.uri) as client:
            client["bench"]["rows"].insert_many({"_id": n, "x": n} for n in range(ROWS))
        for _ in range(runs):
            for way in WAYS:
                turns[way].append(turn(mongo.uri, way, seconds))
    medians = {way: {name: statistics.median(each[name] for each in of) for name in of[0]} for way, of in turns.items()}
    table = Table("outputs are written by", *medians["nothing"], title=f"medians of {runs} interleaved runs")
    for way, of in medians.items():
        table.add_row(way, *(f"{value:,.1f}" for value in of.values()))
    Console().print(table)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"medians": medians, "turns": turns}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
