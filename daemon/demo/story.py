"""What happens to the rows, in this order, and what is measured.

    insert    real digits as PNG bytes, with plain PyMongo, in bursts and one by one
    change    one row gets another digit's image, one is deleted while it changes, one is broken from the start
    kill      the worker gets SIGKILL in the middle of a burst
    verify    every row: it has the output of its present input by the live version, or a dead letter
    train     one row more, and the model trains by itself, goes live, and every output follows (`daemon.demo.training`)
    verify    every row again

The demo is an ordinary client: it sees outputs arrive in a change stream of its own.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from bson import ObjectId
from pymongo import DeleteOne, MongoClient, UpdateOne
from pymongo.change_stream import ChangeStream
from rich.console import Console
from rich.text import Text

from daemon.demo.process import Daemon, DemoFailed
from daemon.demo.training import FOLDS, KEPT_APART, Training
from daemon.logs.terminal import bar, say
from daemon.logs.text import escaped, row_id
from daemon.store.rows import dead_letters
from daemon.store.rows.outputs import Outputs

TABLE, KEY, LISTENER = "mnist", "img", "digit"
OUTPUT = f"_outputs.{LISTENER}"
BURST, LOT, LEAST_SINGLES = 300, 10, 50
OUTPUTS_SECONDS, RECOVERY_SECONDS = 60.0, 90.0
SPLIT_SEED = 0

Digit = tuple[bytes, int]
"""PNG bytes, and which digit it is."""


class Story:
    """What is done with the rows, in this order, and what is measured on the way."""

    def __init__(
        self, out: Console, daemon: Daemon, client: MongoClient[dict[str, Any]], images: Sequence[Digit]
    ) -> None:
        self._out = out
        self._say = partial(say, out)
        self._daemon = daemon
        self._database = client[daemon.config.mongo.database]
        self._service = daemon.config.service.name
        self._rows = self._database[TABLE]
        self._documents = _documents(images)
        self._training = Training(out, daemon, self._database, TABLE, LISTENER)
        self._singles = max(LEAST_SINGLES, len(images) // 10)
        self._interrupted = len(images) // 3
        self._bursts = len(images) - self._singles - self._interrupted - 1  # one is left for the training
        self._ids: list[Any] = []
        self._seen: dict[Any, float] = {}  # when the first output of each row was seen, by time.perf_counter
        self._stream: ChangeStream[dict[str, Any]]
        self._figures: dict[str, str] = {}

    def play(self) -> None:
        """Raises DemoFailed at the first check that fails."""
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"operationType": "update"}},
            {"$project": {"documentKey": 1, "updateDescription.updatedFields": 1}},
        ]
        self._training.armed()
        with self._rows.watch(pipeline, max_await_time_ms=500) as self._stream:
            self._insert_bursts()
            self._insert_one_by_one()
            self._update_a_row()
            deleted = self._delete_a_row()
            broken = self._insert_a_broken_row(deleted)
            self._kill_the_worker()
        self._verify(deleted, broken)
        self._train()
        self._sum_up(self._verify(deleted, broken))

    def _insert_bursts(self) -> None:
        count, spent = math.ceil(self._bursts / BURST), 0.0
        for number in range(1, count + 1):
            documents = self._take(self._bursts * number // count - self._bursts * (number - 1) // count)
            began = time.perf_counter()
            self._rows.insert_many(documents)
            seconds = self._until_seen(documents, OUTPUTS_SECONDS, f"burst {number}") - began
            spent += seconds
            self._say(f"burst {number}: {len(documents)} rows inserted, all had their output after {seconds:.2f} s")
        row = self._row(self._ids[0])
        output = ", ".join(f"{name}: {row['_outputs'][LISTENER][name]}" for name in ("value", "model", "version"))
        self._say(f"a row now: class: {row['class']}, {OUTPUT}: {{{output}}}")
        self._figures["bursts"] = (
            f"{self._bursts / spent:,.0f} rows/s ({self._bursts:,} rows in {count} burst{'' if count == 1 else 's'})"
        )

    def _insert_one_by_one(self) -> None:
        latencies = []
        with bar(self._out, "one by one", self._singles, transient=True) as show:
            for number, document in enumerate(self._take(self._singles), 1):
                time.sleep(random.uniform(0.0, 0.02))  # noqa: S311 - so that the rows march in step with nothing
                began = time.perf_counter()
                self._rows.insert_one(document)
                latencies.append((self._until_seen([document], OUTPUTS_SECONDS) - began) * 1000)
                show(number)
        latencies.sort()
        p50, p99 = (latencies[math.ceil(part * len(latencies)) - 1] for part in (0.50, 0.99))
        self._say(f"one by one: {len(latencies)} rows, each insert's output was seen {p50:.1f} ms later (median)")
        self._figures["single row, p50 / p99"] = (
            f"{p50:.1f} ms / {p99:.1f} ms ({len(latencies)} rows, insert to output)"
        )

    def _update_a_row(self) -> None:
        """A row takes another row's image, so it must get that row's output: a different one, if any two differ.

        Its fold is copied too: an image that is kept apart from the training stays apart.
        """
        stored = list(self._rows.find({"_id": {"$in": self._ids[:200]}}))
        row = stored[0]
        before = row["_outputs"][LISTENER]["value"]
        others = [each for each in stored if each["class"] != row["class"]]
        other = next((each for each in others if each["_outputs"][LISTENER]["value"] != before), others[0])
        due = other["_outputs"][LISTENER]
        self._rows.update_one({"_id": row["_id"]}, {"$set": {each: other[each] for each in (KEY, "class", "_fold")}})
        query = {"_id": row["_id"], f"{OUTPUT}.input": due["input"], f"{OUTPUT}.value": due["value"]}
        self._daemon.until("the updated row's output", lambda: self._rows.find_one(query), OUTPUTS_SECONDS, pause=0.01)
        self._say(
            f"updated a row with another digit's image: class {row['class']} -> {other['class']}, output {before} -> "
            f"{due['value']}"
        )

    def _delete_a_row(self) -> Any:
        """Changes and deletes a row at once, so that the daemon works on a deleted row; returns its `_id`."""
        key, other = self._ids[1], self._row(self._ids[2])
        self._rows.bulk_write([UpdateOne({"_id": key}, {"$set": {KEY: other[KEY]}}), DeleteOne({"_id": key})])
        return key

    def _insert_a_broken_row(self, deleted: Any) -> Any:
        """Inserts half of a PNG; returns its `_id`. Its dead letter comes after the deleted row is handled."""
        whole = self._row(self._ids[2])[KEY]
        key = self._rows.insert_one({KEY: whole[: len(whole) // 2], "class": 0, "_fold": KEPT_APART}).inserted_id
        self._ids.append(key)
        query = {"_id": key, f"{OUTPUT}.error": {"$exists": True}}
        self._daemon.until("the broken row's error", lambda: self._rows.find_one(query), OUTPUTS_SECONDS, pause=0.01)
        letters = self._letters()
        if deleted in letters or self._rows.find_one({"_id": deleted}) is not None:
            raise DemoFailed(f"the deleted row {row_id(deleted)} has left an output or a dead letter behind")
        self._say("deleted a row while it changed: nothing is left behind, no output and no dead letter")
        if key not in letters:
            raise DemoFailed(f"the broken row {row_id(key)} has an error, but no dead letter")
        error = letters[key]["error"]
        words = escaped(f"{error['type']}: {error['message']}")
        self._say(f"inserted half a PNG: a dead letter, of stage {error['stage']}: {words}")
        return key

    def _kill_the_worker(self) -> None:
        """Inserts rows in small lots without a pause; SIGKILL comes after half of the burst."""
        documents, pid = self._take(self._interrupted), self._worker()
        lots = [documents[start : start + LOT] for start in range(0, len(documents), LOT)]
        self._rows.insert_many(lots[0])
        self._until_seen(lots[0], OUTPUTS_SECONDS)
        for lot in lots[1 : len(lots) // 2]:
            self._rows.insert_many(lot)
        os.kill(pid, signal.SIGKILL)
        killed = time.perf_counter()
        for lot in lots[max(1, len(lots) // 2) :]:
            self._rows.insert_many(lot)
        there = {"_id": {"$in": [each["_id"] for each in documents]}, OUTPUT: {"$exists": True}}
        done = self._rows.count_documents(there)
        self._say(
            f"killed the worker (pid {pid}, SIGKILL) in the middle of a burst: {done} of its {len(documents)} rows had "
            "their output"
        )
        seconds = self._until_seen(documents, RECOVERY_SECONDS, "a new worker starts") - killed
        self._say(f"a new worker finished the burst: its last output came {seconds:.1f} s after the kill")
        self._figures["kill to last output"] = f"{seconds:.1f} s ({len(documents) - done} rows were left to do)"

    def _train(self) -> None:
        """The last row starts the training; the rows kept apart measure its effect."""
        before = self._training.right()
        self._say(f"before the training, {before.right} of {before.rows} rows kept apart from it have the right output")
        self._training.validate()
        (last,) = self._take(1)
        self._training.follow(self._training.set_off(last))
        after = self._training.right()
        self._say(f"after the training, {after.right} of {after.rows} rows kept apart from it have the right output")
        if (after.rows, after.right > before.right) != (before.rows, True):
            raise DemoFailed(f"the training has not helped: {before} of {before.rows}, then {after} of {after.rows}")
        self._training.validate()
        self._training.plot(self._daemon.file.with_name("versions.png"))
        self._figures["accuracy"] = (
            f"{before} untrained, {after} trained ({after.rows} rows kept apart from the training)"
        )
        self._figures |= self._training.figures

    def _verify(self, deleted: Any, broken: Any) -> dict[str, str]:
        """Checks every row at one snapshot; returns the figures.

        An output names a hash of the input that it was computed from, which must be the row's, and the version that
        computed it.
        """
        rows = Outputs(self._rows, LISTENER, (KEY,), {}).read(self._ids, None, sys.maxsize).rows
        letters, version = self._letters(), self._training.live()
        expected = set(self._ids) - {deleted}
        wrong = {
            "are missing": expected - {row.key for row in rows},
            "are there though they were deleted": {row.key for row in rows} - expected,
            "have no output of what they hold": {row.key for row in rows if row.seen.input != row.input},
            f"have no output of the live version {version}": {
                row["_id"] for row in self._rows.find({f"{OUTPUT}.version": {"$ne": version}}, {"_id": 1})
            },
            "have an error, or none, against expectation": {row.key for row in rows if row.seen.error} ^ {broken},
            "have a dead letter, or none, against expectation": letters.keys() ^ {broken},
        }
        found = [f"{len(keys)} rows {what}, {row_id(next(iter(keys)))} for one" for what, keys in wrong.items() if keys]
        if self._rows.estimated_document_count() != len(expected):
            found.append(f"the table does not hold {len(expected)} rows")
        if found:
            raise DemoFailed("; ".join(found))
        self._say(
            f"verified all {len(rows):,} rows: each has the output of what it holds now, by version {version}, or its "
            "dead letter"
        )
        return {
            "rows inserted": f"{len(self._ids):,} (one of them broken, one deleted later)",
            "outputs": f"{len(rows) - len(letters):,}, all of version {version}",
            "dead letters": f"{len(letters):,}",
        }

    def _sum_up(self, table: Mapping[str, str]) -> None:
        self._say("")
        for name, figure in {**table, **self._figures}.items():
            self._out.print(Text.assemble((f"{name:<24}", "bold"), figure))
        self._say("")

    # what the story needs

    def _take(self, count: int) -> list[dict[str, Any]]:
        """The next digits as documents, with an `_id` that is known before they are inserted."""
        documents = list(islice(self._documents, count))
        self._ids += [document["_id"] for document in documents]
        return documents

    def _until_seen(self, documents: Sequence[dict[str, Any]], seconds: float, label: str | None = None) -> float:
        """Waits until the stream has shown an output of each row; when the last one was seen. `label` shows a bar."""
        waiting = {document["_id"] for document in documents} - self._seen.keys()
        end = time.monotonic() + seconds
        with bar(self._out, label or "", len(documents), transient=True) as show:
            show(len(documents) - len(waiting))
            while waiting:
                self._daemon.check_alive()
                if time.monotonic() > end:
                    raise DemoFailed(
                        f"waited {seconds:.0f} s in vain for {len(waiting)} of {len(documents)} outputs: "
                        f"row {row_id(next(iter(waiting)))} for one"
                    )
                key = self._next_seen()
                if key in waiting:
                    waiting.remove(key)
                    show(len(documents) - len(waiting))
        return max(self._seen[document["_id"]] for document in documents)

    def _next_seen(self) -> Any:
        """The row of the stream's next change, if that gave the row an output; None after a while without a change."""
        change = self._stream.try_next()
        if change is None:
            return None
        fields = change["updateDescription"]["updatedFields"]
        if not any(name.split(".")[0] == "_outputs" for name in fields):
            return None  # the demo's own update
        key = change["documentKey"]["_id"]
        self._seen.setdefault(key, time.perf_counter())
        return key

    def _row(self, key: Any) -> dict[str, Any]:
        row = self._rows.find_one({"_id": key})
        if row is None:
            raise DemoFailed(f"the row {row_id(key)} does not exist any more")
        return row

    def _letters(self) -> dict[Any, dict[str, Any]]:
        listed = dead_letters.listed(self._database, self._service, {"_id.listener": LISTENER})
        return {letter["_id"]["row"]: letter for letter in listed}

    def _worker(self) -> int:
        """The process id of the worker, from /proc: the database is not trusted with what to kill."""

        def found() -> int | None:
            for stat in Path("/proc").glob("[0-9]*/stat"):
                with suppress(OSError):  # it has just ended
                    parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
                    if parent == self._daemon.pid and b"daemon.worker" in stat.with_name("cmdline").read_bytes():
                        return int(stat.parent.name)
            return None

        return self._daemon.until("the daemon to have a worker", found, OUTPUTS_SECONDS)


def _documents(images: Sequence[Digit]) -> Iterator[dict[str, Any]]:
    """The digits as documents, each in a fold of a seeded shuffle; the last one is in the training fold."""
    bounds = [round(bound * len(images)) for bound in accumulate(FOLDS.values())]
    last, *folds = [next(fold for fold, end in zip(FOLDS, bounds, strict=True) if n < end) for n in range(len(images))]
    random.Random(SPLIT_SEED).shuffle(folds)  # noqa: S311 - nothing secret hangs on it
    for (image, label), fold in zip(images, [*folds, last], strict=True):
        yield {"_id": ObjectId(), KEY: image, "class": label, "_fold": fold}
