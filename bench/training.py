"""What a training costs, and what it and a swap cost the rows that stream in meanwhile.

    python -m bench.training [--runs 5] [--quick] [--json PATH]      (or: make bench, after the yardstick)

On a real `predictd run` with its own MongoDB, the real LeNet and real digits:

* *overhead*: a job of 200 iterations of batch 10, validating every 20, against a bare PyTorch loop over the same rows
  (`bench.bare_training`), run by run in turns, at the same niceness and with as many threads, each timed after its
  start-up;
* *beside a training*: one row's time from insert to output, while nothing else happens and while a training runs, in
  turns;
* *swap*: rows at a steady rate; the 99th percentile of their times while nothing else happens, from a promotion until
  the first output of the promoted version, and in the resync that follows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from bson import ObjectId
from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from bench import arguments
from bench.bare_training import Order
from bench.sides import ROOT, Failed
from components.signing_key import SigningKey
from daemon.demo.process import Daemon
from daemon.store.connection import open_database
from daemon.store.registry.registry import Registry
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import Job, Jobs
from examples.digits import digits, png

SERVICE, MODEL, TABLE = "training", "lenet", "mnist"
BATCH, ITERATIONS, INTERVAL, THREADS = 10, 200, 20, 1
TRAIN_ROWS, VALID_ROWS = 2000, 200
OUTPUT = "_outputs.digit"
SERVICE_TOML = f"""
[service]
name = "{SERVICE}"
[mongo]
uri = "embedded"
database = "{SERVICE}"
[security]
allow_imports = ["examples"]
[tables.{TABLE}]
fields = {{ img = "pil_image", class = "int", _fold = "str" }}
[models.{MODEL}]
object = "examples.mnist:LeNet5"
arguments = {{ num_classes = 10 }}
preprocess = "examples.mnist:preprocess"
postprocess = "examples.mnist:postprocess"
device = "cpu"
[models.endless]
object = "examples.mnist:LeNet5"
arguments = {{ num_classes = 10 }}
preprocess = "examples.mnist:preprocess"
device = "cpu"
[trainers.endless]
table = "{TABLE}"
where = {{ _fold = "train" }}
key = ["img", "class"]
objective = "torch.nn.functional:cross_entropy"
loader = {{ batch_size = {BATCH} }}
max_iterations = 1_000_000_000
validation_interval = 1_000_000_000
threads = {THREADS}
promote = "manual"
[listeners.digit]
table = "{TABLE}"
key = "img"
model = "{MODEL}"
[trainers.{MODEL}]
table = "{TABLE}"
where = {{ _fold = "train" }}
key = ["img", "class"]
objective = "torch.nn.functional:cross_entropy"
loader = {{ batch_size = {BATCH} }}
max_iterations = {ITERATIONS}
validation_interval = {INTERVAL}
threads = {THREADS}
promote = "manual"
[validations.performance]
model = "{MODEL}"
key = ["img", "class"]
datasets = {{ valid = {{ table = "{TABLE}", where = {{ _fold = "valid" }} }} }}
metrics = {{ acc = "examples.mnist:accuracy" }}
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: trainings, single rows a turn, promotions, rows/s and seconds of a quiet stretch of the
    stream.
    """

    runs: int
    singles: int
    swaps: int
    rate: float
    quiet_seconds: float


class Place:
    """A running daemon, and what is done to its rows."""

    def __init__(self, daemon: Daemon, client: MongoClient[dict[str, Any]]) -> None:
        self.daemon, self.client = daemon, client
        self.data = open_database(client, SERVICE)
        self.rows = self.data[TABLE]
        self.jobs = Jobs(self.data, SERVICE)
        key = SigningKey.read(daemon.config.service.state_dir / "signing.key")
        self.versions = Versions(self.data, SERVICE, MODEL, Registry(self.data, SERVICE, 0, key).trust)
        self.images = [(png(image), label) for image, label in digits(5000)]
        self._next = 0

    def until(self, what: str, probe: Callable[[], Any], seconds: float = 180.0, pause: float = 0.05) -> Any:
        return self.daemon.until(what, probe, seconds, pause=pause)

    def fill(self) -> None:
        """The rows that are learned from and validated on."""
        folds = ["train"] * TRAIN_ROWS + ["valid"] * VALID_ROWS
        chosen = random.Random(1).sample(self.images, len(folds))
        self.rows.insert_many(
            {"img": image, "class": label, "_fold": fold} for (image, label), fold in zip(chosen, folds, strict=True)
        )
        self.until("every row's output", lambda: self.rows.count_documents({OUTPUT: {"$exists": True}}) == len(folds))

    def image(self) -> dict[str, Any]:
        """Another row, of no fold."""
        self._next += 1
        image, label = self.images[self._next % len(self.images)]
        return {"_id": ObjectId(), "img": image, "class": label, "_fold": "other"}

    def trained(self) -> tuple[int, float, float]:
        """One training by the daemon: the version, its seconds, its accuracy."""
        job = self.jobs.queue("train", MODEL, {"by": "bench"})
        assert job is not None

        def ended() -> Job | None:
            found = self.jobs.get(job)
            if found is not None and found.state == "failed":
                raise Failed(f"the training failed: {found.error}")
            return found if found is not None and found.state == "done" else None

        number = int(self.until("the training's end", ended).result["version"])
        version = self.versions.get(number)
        assert version is not None
        return number, float(version.data["seconds"]), version.metrics["valid/acc"]

    @contextmanager
    def training(self) -> Iterator[None]:
        """While a training runs that would not end by itself."""
        job = self.jobs.queue("train", "endless", {"by": "bench"})
        assert job is not None

        def step() -> int | None:
            found = self.jobs.get(job)
            return None if found is None else found.progress.step

        self.until("the training's first steps", step)
        try:
            yield
            found = self.jobs.get(job)
            if found is None or found.state != "running":
                raise Failed(f"the training beside which rows were measured does not run: {found}")
        finally:
            self.jobs.cancel(job)
            self.until("the cancelled training's end", lambda: not self.daemon_jobs())

    def daemon_jobs(self) -> list[Any]:
        status = self.data["_predictd.status"].find_one({"_id": SERVICE}) or {}
        return list(status.get("jobs") or [])

    def single(self) -> float:
        """Milliseconds from one row's insert until its output stands."""
        row, stands = self.image(), {OUTPUT: {"$exists": True}}
        time.sleep(random.uniform(0.0, 0.01))
        began = time.perf_counter()
        self.rows.insert_one(row)
        self.until(
            "a row's output", lambda: self.rows.find_one({"_id": row["_id"], **stands}, {"_id": 1}), pause=0.0002
        )
        return 1000 * (time.perf_counter() - began)


class Stream:
    """Rows at a steady rate, from a thread of its own, and when the first output of each was seen in a change
    stream.
    """

    def __init__(self, place: Place, rate: float) -> None:
        self._place, self._pause = place, 1.0 / rate
        self._end = threading.Event()
        self.sent: dict[Any, float] = {}
        self.seen: dict[Any, tuple[float, int]] = {}
        """When the first output of a row was seen, and by which version it was."""
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._watch, self._send)]

    def __enter__(self) -> Self:
        self._open = threading.Event()
        self._threads[0].start()
        self._open.wait(30)
        self._threads[1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)

    def _send(self) -> None:
        due = time.perf_counter()
        while not self._end.is_set():
            row = self._place.image()
            self.sent[row["_id"]] = time.perf_counter()
            self._place.rows.insert_one(row)
            due += self._pause
            time.sleep(max(0.0, due - time.perf_counter()))

    def _watch(self) -> None:
        pipeline: list[dict[str, Any]] = [
            {"$match": {"operationType": "update"}},
            {"$project": {"documentKey": 1, "output": "$updateDescription.updatedFields"}},
        ]
        with self._place.rows.watch(pipeline, max_await_time_ms=200) as stream:
            stream.try_next()
            self._open.set()
            while not self._end.is_set():
                event = stream.try_next()
                if event is None or event["documentKey"]["_id"] in self.seen:
                    continue
                fields = event["output"]
                output = fields.get("_outputs", {}).get("digit") or fields.get(OUTPUT) or {}
                self.seen[event["documentKey"]["_id"]] = (time.perf_counter(), int(output.get("version", 0)))

    def waited(self, begin: float, end: float) -> list[float]:
        """Milliseconds of the rows that were sent in this stretch of time; each of them must have been seen."""
        keys = [key for key, sent in list(self.sent.items()) if begin <= sent < end]
        self._place.until("every output of the stream", lambda: all(key in self.seen for key in keys))
        return [1000 * (self.seen[key][0] - self.sent[key]) for key in keys]

    def first_of(self, version: int, after: float) -> float | None:
        """When the first output of a version was seen, of those that were seen after a moment."""
        seen = list(self.seen.values())
        return min((at for at, number in seen if number == version and at > after), default=None)


# ---- what is measured ---------------------------------------------------------------------------------------------


def overhead(place: Place, plan: Plan, status: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of both, run by run, and their ratio."""
    runs: list[tuple[float, float]] = []
    order = Order(place.daemon.uri(), SERVICE, TABLE, BATCH, ITERATIONS, INTERVAL, THREADS)
    for run in range(1, plan.runs + 1):
        status(f"training, run {run} of {plan.runs}")
        _, ours, accuracy = place.trained()
        said = subprocess.run(
            [sys.executable, "-P", "-m", "bench.bare_training"],
            input=json.dumps(asdict(order)) + "\n",
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        bare = json.loads(said.stdout.splitlines()[-1])
        if min(accuracy, bare["accuracy"]) < 0.5:
            raise Failed(f"one side has learned nothing: accuracy {accuracy:.2f} and {bare['accuracy']:.2f}")
        runs.append((bare["seconds"], ours))
    ratios = [ours / bare for bare, ours in runs]
    return {
        "bare_seconds": round(statistics.median(bare for bare, _ in runs), 3),
        "predictd_seconds": round(statistics.median(ours for _, ours in runs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios_by_run": [round(ratio, 3) for ratio in ratios],
    }


def beside(place: Place, plan: Plan, status: Callable[[str], None]) -> dict[str, Any]:
    """Medians of one row's milliseconds, quiet and beside a training, and their ratio."""
    turns: list[tuple[float, float]] = []
    for run in range(1, max(2, plan.runs - 2) + 1):
        status(f"single rows beside a training, turn {run}")
        quiet = [place.single() for _ in range(plan.singles)]
        with place.training():
            busy = [place.single() for _ in range(plan.singles)]
        turns.append((statistics.median(quiet), statistics.median(busy)))
    ratios = [busy / quiet for quiet, busy in turns]
    return {
        "quiet_p50_ms": round(statistics.median(quiet for quiet, _ in turns), 2),
        "training_p50_ms": round(statistics.median(busy for _, busy in turns), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratios_by_run": [round(ratio, 3) for ratio in ratios],
    }


def swap(place: Place, plan: Plan, status: Callable[[str], None]) -> dict[str, Any]:
    """The 99th percentiles of a steady stream: quiet, during swaps, and in the resyncs after them. All swaps of a run
    count together.
    """
    status("swaps under a steady stream")
    one, other = (place.trained()[0] for _ in range(2))
    quiet: list[float] = []
    swapping: list[float] = []
    resyncing: list[float] = []
    with Stream(place, plan.rate) as stream:
        time.sleep(2.0)
        for n in range(plan.swaps):
            began = time.perf_counter()
            time.sleep(plan.quiet_seconds)
            quiet += stream.waited(began, time.perf_counter())
            number = (one, other)[n % 2]
            before = time.perf_counter()
            place.versions.promote(number, reason="bench")
            swapped = place.until("the swap", partial(stream.first_of, number, before), pause=0.002)
            swapping += stream.waited(before, swapped + 0.2)
            place.until("the resync", lambda: not _scanning(place), pause=0.2)
            resyncing += stream.waited(swapped + 0.2, time.perf_counter())
    return {
        "rows_per_second": plan.rate,
        "rows": {"quiet": len(quiet), "swap": len(swapping), "resync": len(resyncing)},
        "quiet_p99_ms": round(p99(quiet), 2),
        "swap_p99_ms": round(p99(swapping), 2),
        "resync_p99_ms": round(p99(resyncing), 2),
        "quiet_p50_ms": round(statistics.median(quiet), 2),
        "swap_p50_ms": round(statistics.median(swapping), 2),
        "resync_p50_ms": round(statistics.median(resyncing), 2),
        "ratio": round(p99(swapping) / p99(quiet), 3),
    }


def _scanning(place: Place) -> bool:
    return place.data["_predictd.scans"].count_documents({"state": "running"}) > 0


def p99(times: list[float]) -> float:
    """The nearest rank."""
    return sorted(times)[max(0, -(-len(times) * 99 // 100) - 1)]


def table(told: dict[str, dict[str, Any]]) -> Table:
    """The figures for people."""
    shown = Table(title="training, and the rows beside it")
    for heading in ("", "without", "with", "ratio", "by run"):
        shown.add_column(heading, justify="left" if heading in {"", "by run"} else "right")
    lines = (
        ("overhead", "200 iterations: bare loop, predictd; s", "bare_seconds", "predictd_seconds"),
        ("beside", "one row, p50: quiet, beside a training; ms", "quiet_p50_ms", "training_p50_ms"),
        ("swap", "steady stream, p99: quiet, during a swap; ms", "quiet_p99_ms", "swap_p99_ms"),
    )
    for part, words, without, with_ in lines:
        if part in told:
            by_run = " ".join(f"{ratio:.2f}" for ratio in told[part].get("ratios_by_run", []))
            shown.add_row(
                words, f"{told[part][without]:.2f}", f"{told[part][with_]:.2f}", f"{told[part]['ratio']:.2f}", by_run
            )
    if "swap" in told:
        found = told["swap"]
        ratio = found["resync_p99_ms"] / found["quiet_p99_ms"]
        shown.add_row(
            "steady stream, p99: quiet, in the resync; ms",
            f"{found['quiet_p99_ms']:.2f}",
            f"{found['resync_p99_ms']:.2f}",
            f"{ratio:.2f}",
            "",
        )
    return shown


def measure(plan: Plan, parts: list[str], console: Console) -> dict[str, dict[str, Any]]:
    """Everything; whatever was started is ended when this returns or raises."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="predictd-training-")))
        daemon = Daemon(folder, SERVICE_TOML, {})
        stack.callback(daemon.end)
        daemon.until_ready(console)
        client: MongoClient[dict[str, Any]] = stack.enter_context(MongoClient(daemon.uri(), tz_aware=True))
        place = Place(daemon, client)
        place.fill()
        status = stack.enter_context(console.status("measuring"))
        place.trained()  # the first one of a machine reads torch from the disk
        known = {"overhead": overhead, "beside": beside, "swap": swap}
        return {part: known[part](place, plan, status.update) for part in parts}


def main() -> None:
    """The command line."""
    parser = arguments.parser("training", __doc__, runs=5)
    parser.add_argument("--singles", type=int, default=200, help="single rows a turn (200)")
    parser.add_argument("--swaps", type=int, default=6, help="promotions under the stream (6)")
    parser.add_argument("--rate", type=float, default=300.0, help="rows a second of the stream (300)")
    parser.add_argument("--only", action="append", choices=["overhead", "beside", "swap"], help="only this part")
    given = parser.parse_args()
    plan = (
        Plan(2, 50, 2, given.rate, 3.0)
        if given.quick
        else Plan(given.runs, given.singles, given.swaps, given.rate, 5.0)
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    try:
        told = measure(plan, given.only or ["overhead", "beside", "swap"], console)
    except Failed as error:
        sys.exit(f"bench.training: {error}")
    console.print(table(told))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"plan": asdict(plan), "cores": os.cpu_count(), **told}, indent=2) + "\n")
    console.print(f"figures in {given.json}", soft_wrap=True)


if __name__ == "__main__":
    main()
