"""predictd beside a straight hand-written loop, in one go, on the same MongoDB, with the same model and weights.

    python -m bench.yardstick [--runs 5] [--rows 5000] [--quick] [--json PATH]   (or: make bench)
    python -m bench.yardstick --pathway PYTHON      (or: make bench-peers, which makes an environment for it)

The sides are the loop, a worker of predictd, one with a process of its own for `preprocess`, and one of two processes
that share the rows: four with each kind of work (bench/kinds.py: the tutorial's per-row preprocess, the batched one,
photographs of 1 MB for a ResNet-18, of which there are fewer). They take turns, run by run: a burst of rows, timed from
the first insert until every output stands, then rows one by one, each timed from its insert until its output stands.
Whoever's turn it is not is stopped (SIGSTOP), so that nobody else's change stream costs anything. Each process gets as
many torch threads (half of the cores, as mongod and the client need some too: on two cores, two threads for such small
batches mostly wait for each other).

predictd does more work than the loop, and does it on more cores; so the ratio falls where other processes take the
cores away. How much they took is measured, and said.

At the end of each run the outputs are counted, and compared between the sides image by image: a difference ends the
run.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bson import ObjectId
from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from bench import arguments
from bench.kinds import KINDS, Kind
from bench.sides import LOOP, Failed, Side, clocks, start
from bench.straight_loop import FIELD
from daemon.embedded.server import ensure

BURST = 500
OUTPUT_SECONDS = 120.0
POLL_SECONDS, SINGLE_POLL_SECONDS = 0.01, 0.0002


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    runs: int
    rows: int
    singles: int
    await_ms: int
    threads: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One side's turn in one run: the burst's rows/s and CPU microseconds a row (its own, mongod's, the inserting
    client's); how many cores were others' meanwhile; and milliseconds of each single row.
    """

    rows_per_second: float
    cpu_us: float
    mongod_us: float
    client_us: float
    others: float
    singles_ms: tuple[float, ...]

    def percentile(self, percent: int) -> float:
        """Milliseconds, the nearest rank."""
        return sorted(self.singles_ms)[max(0, -(-len(self.singles_ms) * percent // 100) - 1)]


@dataclass
class Sides:
    """The sides with one kind of work, and their turns so far."""

    kind: str
    sides: dict[str, Side]
    turns: dict[str, list[Turn]] = field(init=False)

    def __post_init__(self) -> None:
        self.turns = {name: [] for name in self.sides}


# ---- one turn -----------------------------------------------------------------------------------------------------


def take_turn(side: Side, images: list[bytes], plan: Plan) -> tuple[Turn, list[Any]]:
    """The side's burst and single rows; also its outputs, in the order of the images (the single rows' at the end)."""
    side.resume()
    try:
        single(side, images[0])  # it has caught up with the stream, and is warm
        rows: list[dict[str, Any]] = [{"_id": ObjectId(), "img": image} for image in images]
        began, before = time.perf_counter(), clocks(side)
        seconds = burst(side, rows)
        all_, own, mongod, client = (b - a for a, b in zip(before, clocks(side), strict=True))
        others = max(0.0, all_ - own - mongod - client) / (time.perf_counter() - began)
        singles = [single(side, image) for image in images[: plan.singles]]
        outputs = values(side, [row["_id"] for row in rows] + [key for key, _ in singles])
        return Turn(
            len(rows) / seconds,
            own * 1e6 / len(rows),
            mongod * 1e6 / len(rows),
            client * 1e6 / len(rows),
            others,
            tuple(1000 * waited for _, waited in singles),
        ), outputs
    finally:
        side.pause()


def burst(side: Side, rows: list[dict[str, Any]]) -> float:
    """Seconds from the first insert until all outputs stand.

    Rows are predicted about in their order, so the last one is asked for, which costs next to nothing; only then are
    all counted.
    """
    first, last = rows[0]["_id"], rows[-1]["_id"]
    began = time.perf_counter()
    for at in range(0, len(rows), BURST):
        side.collection.insert_many(rows[at : at + BURST])

    def last_stands() -> bool:
        return side.collection.find_one({"_id": last, FIELD: {"$exists": True}}, {"_id": 1}) is not None

    def all_stand() -> bool:
        return side.collection.count_documents({"_id": {"$gte": first}, FIELD: {"$exists": True}}) >= len(rows)

    side.await_until(last_stands, OUTPUT_SECONDS, POLL_SECONDS, "output of the burst's last row")
    side.await_until(all_stand, OUTPUT_SECONDS, POLL_SECONDS, "output of every row of the burst")
    return time.perf_counter() - began


def single(side: Side, image: bytes) -> tuple[ObjectId, float]:
    """One row's `_id`, and the seconds from its insert until its output stands."""
    key = ObjectId()
    began = time.perf_counter()
    side.collection.insert_one({"_id": key, "img": image})
    stands = {"_id": key, FIELD: {"$exists": True}}
    side.await_until(
        lambda: side.collection.find_one(stands, {"_id": 1}) is not None,
        OUTPUT_SECONDS,
        SINGLE_POLL_SECONDS,
        "output of a row",
    )
    return key, time.perf_counter() - began


def values(side: Side, keys: list[ObjectId]) -> list[Any]:
    """The outputs of these rows. Raises Failed where one has none."""
    found = {
        row["_id"]: row.get("_outputs", {}).get("digit", {}).get("value")
        for row in side.collection.find({"_id": {"$in": keys}}, {FIELD: 1})
    }
    missing = sum(found.get(key) is None for key in keys)
    if missing:
        raise Failed(f"{side.name}: {missing} of {len(keys)} rows have no output")
    return [found[key] for key in keys]


def measure(sides: Sides, kind: Kind, plan: Plan) -> None:
    """One run: the turns of all sides, one after the other."""
    images, plan = kind.pictures(kind.rows(plan.rows)), replace(plan, singles=kind.rows(plan.singles))
    outputs = {}
    for name, side in sides.sides.items():
        turn, outputs[name] = take_turn(side, images, plan)
        sides.turns[name].append(turn)
    for name, found in outputs.items():
        differ = sum(a != b for a, b in zip(outputs[LOOP], found, strict=True))
        if differ:
            raise Failed(
                f"{sides.kind}: {differ} of {len(found)} outputs of {name} differ from the loop's, with the same "
                "weights"
            )


# ---- what is said about it ----------------------------------------------------------------------------------------


def summary(sides: Sides) -> dict[str, Any]:
    """Medians over the runs, by side. A ratio is taken within each run first: the side's figure by the loop's."""
    figures: dict[str, Callable[[Turn], float]] = {
        "rows_per_second": lambda turn: turn.rows_per_second,
        "cpu_us": lambda turn: turn.cpu_us,
        "mongod_cpu_us": lambda turn: turn.mongod_us,
        "client_cpu_us": lambda turn: turn.client_us,
        "single_p50_ms": lambda turn: turn.percentile(50),
        "single_p99_ms": lambda turn: turn.percentile(99),
    }
    told: dict[str, Any] = {
        "others_cores": [round(turn.others, 2) for turns in sides.turns.values() for turn in turns],
        **{part: {side: {} for side in sides.turns} for part in ("median", "runs", "ratio", "ratios_by_run")},
    }
    for name, of in figures.items():
        by_run = {side: [of(turn) for turn in turns] for side, turns in sides.turns.items()}
        for side, each in by_run.items():
            ratios = [own / loops for loops, own in zip(by_run[LOOP], each, strict=True)]
            told["median"][side][name] = round(statistics.median(each), 2)
            told["runs"][side][name] = [round(value, 2) for value in each]
            told["ratio"][side][name] = round(statistics.median(ratios), 3)
            told["ratios_by_run"][side][name] = [round(ratio, 3) for ratio in ratios]
    return told


def table(summaries: dict[str, dict[str, Any]], plan: Plan) -> Table:
    """The figures for people."""
    shown = Table(
        title=f"medians of {plan.runs} interleaved runs of {plan.rows:,} rows in a burst and {plan.singles} one by one"
    )
    others = [side for side in next(iter(summaries.values()))["median"] if side != LOOP]
    for heading in ("work", "", LOOP, *(heading for side in others for heading in (side, "ratio"))):
        shown.add_column(heading, justify="left" if heading in {"work", ""} else "right")
    lines = {
        "rows_per_second": ("burst, rows/s", ",.0f"),
        "cpu_us": ("CPU us a row", ",.0f"),
        "mongod_cpu_us": ("mongod's CPU us a row", ",.0f"),
        "single_p50_ms": ("one row, p50, ms", ".1f"),
        "single_p99_ms": ("one row, p99, ms", ".1f"),
    }
    for kind, told in summaries.items():
        for name, (words, form) in lines.items():
            cells = [format(told["median"][LOOP][name], form)]
            for side in others:
                by_run = told["ratios_by_run"][side][name]
                spread = f" ({min(by_run):.2f} to {max(by_run):.2f})"
                cells += [format(told["median"][side][name], form), f"{told['ratio'][side][name]:.2f}{spread}"]
            shown.add_row(kind, words, *cells)
        shown.add_section()
    return shown


def compare(
    plan: Plan, kinds: Iterable[str], console: Console, pathway: str | None = None
) -> dict[str, dict[str, Any]]:
    """The whole comparison; whatever was started is ended when this returns or raises."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="predictd-yardstick-")))
        status = stack.enter_context(console.status("starting MongoDB"))
        mongo = stack.enter_context(ensure(folder))
        client: MongoClient[dict[str, Any]] = stack.enter_context(MongoClient(mongo.uri))
        all_sides = []
        for kind in kinds:
            status.update(f"starting the sides with {kind} work")
            started = start(
                client,
                mongo.uri,
                folder,
                kind,
                threads=plan.threads,
                await_ms=plan.await_ms,
                stack=stack,
                pathway=pathway,
            )
            for side in started.values():
                images = KINDS[kind].pictures(KINDS[kind].rows(BURST))
                take_turn(side, images, replace(plan, singles=0))  # the first batches of a process are slow
            all_sides.append(Sides(kind, started))
        for run in range(1, plan.runs + 1):
            for sides in all_sides:
                status.update(f"run {run} of {plan.runs}, {sides.kind} work")
                measure(sides, KINDS[sides.kind], plan)
        return {sides.kind: summary(sides) for sides in all_sides}


def machine() -> dict[str, Any]:
    """Its cores, and whether a real-time priority (`chrt -r 10`) kept other processes away."""
    alone = os.sched_getscheduler(0) in {os.SCHED_RR, os.SCHED_FIFO}
    return {"cores": os.cpu_count(), "real_time": alone}


def main() -> None:
    """The command line."""
    half = max(1, (os.cpu_count() or 1) // 2)
    parser = arguments.parser("yardstick", __doc__, runs=5, rows=5000)
    parser.add_argument("--singles", type=int, default=100, help="rows one by one (100)")
    parser.add_argument("--kind", choices=KINDS, help="only this kind of work (all)")
    parser.add_argument("--await-ms", type=int, default=1, help="how long the loop's stream waits for an event (1)")
    parser.add_argument("--pathway", metavar="PYTHON", help="measure Pathway, too, which this Python has")
    parser.add_argument("--threads", type=int, default=half, help=f"torch threads of each process ({half})")
    given = parser.parse_args()
    runs, rows = (1, 1000) if given.quick else (given.runs, given.rows)
    plan = Plan(runs, rows, given.singles, given.await_ms, given.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    try:
        summaries = compare(plan, [given.kind] if given.kind else KINDS, console, given.pathway)
    except Failed as error:
        sys.exit(f"yardstick: {error}")
    console.print(table(summaries, plan))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"plan": asdict(plan), **machine(), "kinds": summaries}, indent=2) + "\n")
    others = statistics.median(each for told in summaries.values() for each in told["others_cores"])
    console.print(f"meanwhile other processes used {others:.1f} of {os.cpu_count()} cores", soft_wrap=True)
    console.print(f"all outputs stand and are equal on all sides; figures in {given.json}", soft_wrap=True)


if __name__ == "__main__":
    main()
