"""The closest peer on the yardstick's work: Pathway, with a connector as its users write one.

Its own connector for MongoDB wants a licence and a later server, so rows come in by a `ConnectorSubject` (the change
stream, one commit for each answer of the server) and go out by a `ConnectorObserver` (one unordered bulk for each of
its batches). Between them stands one function over at most `max_batch` rows, with the yardstick's model and weights. It
keeps no promise of predictd's: no versions, no training, no dead letters; a broken image ends it.

Runs in an environment that has Pathway (`make bench-peers`), with the same order and the same answers as
`bench.straight_loop`.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import pathway as pw  # type: ignore[import-not-found]
import torch
from bson import ObjectId
from pymongo import MongoClient, UpdateOne
from pymongo.collection import Collection

from bench.kinds import KINDS
from bench.straight_loop import FIELD, Order, leave_with_parent, prepared, served_model
from examples.mnist import postprocess


class Row(pw.Schema):  # type: ignore[misc]
    """What the stream hands over."""

    key: str = pw.column_definition(primary_key=True)
    img: bytes


class Inserts(pw.io.python.ConnectorSubject):  # type: ignore[misc]
    """The inserted rows, from the change stream."""

    def __init__(self, collection: Collection[dict[str, Any]], await_ms: int) -> None:
        super().__init__(session_type="upsert")
        self._collection, self._await_ms = collection, await_ms

    def run(self) -> None:
        inserts: list[dict[str, Any]] = [
            {"$match": {"operationType": "insert"}},
            {"$project": {"fullDocument.img": 1, "documentKey": 1}},
        ]
        with self._collection.watch(inserts, max_await_time_ms=self._await_ms) as stream:
            print("ready", flush=True)
            waiting = False
            while True:
                event = stream.try_next()
                if event is not None:
                    self.next(key=str(event["documentKey"]["_id"]), img=bytes(event["fullDocument"]["img"]))
                    waiting = True
                elif waiting:
                    self.commit()
                    waiting = False


class Outputs(pw.io.python.ConnectorObserver):  # type: ignore[misc]
    """Writes the outputs of a batch at its end."""

    def __init__(self, collection: Collection[dict[str, Any]]) -> None:
        self._collection = collection
        self._writes: list[UpdateOne] = []

    def on_change(self, key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:  # noqa: ARG002
        if is_addition:
            self._writes.append(UpdateOne({"_id": ObjectId(row["key"])}, {"$set": {FIELD: row["digit"]}}))

    def on_time_end(self, time: int) -> None:  # noqa: ARG002
        if self._writes:
            self._collection.bulk_write(self._writes, ordered=False)
            self._writes = []


def main() -> None:
    """Serves until standard input ends."""
    order = Order(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=leave_with_parent, daemon=True).start()
    client: MongoClient[dict[str, Any]] = MongoClient(order.uri)
    collection = client[order.database][order.collection]
    model = served_model(client, order)
    kind = KINDS[order.kind]
    prepare = prepared(kind)

    @pw.udf(max_batch_size=kind.max_batch, deterministic=True)  # type: ignore[untyped-decorator]
    def digit(contents: list[bytes]) -> list[int]:
        with torch.inference_mode():
            return [postprocess(logits) for logits in model(prepare(contents))]

    rows = pw.io.python.read(Inserts(collection, order.await_ms), schema=Row, autocommit_duration_ms=None)
    pw.io.python.write(rows.select(pw.this.key, digit=digit(pw.this.img)), Outputs(collection))
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


if __name__ == "__main__":
    main()
