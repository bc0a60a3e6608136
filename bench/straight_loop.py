"""The yardstick's other side: the loop that a good engineer writes in an afternoon. One thread, no guarantees.

It watches a collection for inserts, takes whatever the stream holds at once, decodes, preprocesses, infers,
postprocesses and writes the outputs as one unordered bulk. What it does not do is what predictd is for: rows that
change or go while they are predicted, rows that were there before it or came while it was down, broken rows, a stream
that breaks, a kill.

Run as `python -P -m bench.straight_loop` with one JSON line on standard input (`Order`), which then stays open: the
loop ends with it. It says `ready` on standard output once its stream is open.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from pymongo import MongoClient, UpdateOne

from bench.kinds import KINDS, Kind, found
from components.torch import weights
from daemon.store.registry.versions import Versions
from examples.mnist import postprocess

FIELD = "_outputs.digit.value"


@dataclass(frozen=True, slots=True)
class Order:
    """What the loop is told: its collection, and where predictd keeps the weights that both sides run."""

    uri: str
    database: str
    collection: str
    kind: str  # of work, in KINDS
    await_ms: int  # how long the server waits for an event before it says that there is none
    weights_database: str
    service: str
    model: str


def main() -> None:
    """Serves until standard input ends."""
    order = Order(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=leave_with_parent, daemon=True).start()
    client: MongoClient[dict[str, Any]] = MongoClient(order.uri)
    run(order, client, served_model(client, order))


def run(order: Order, client: MongoClient[dict[str, Any]], model: torch.nn.Module) -> None:
    """The loop itself."""
    collection = client[order.database][order.collection]
    kind = KINDS[order.kind]
    prepare = prepared(kind)
    inserts: list[dict[str, Any]] = [
        {"$match": {"operationType": "insert"}},
        {"$project": {"fullDocument.img": 1, "documentKey": 1}},
    ]
    with collection.watch(inserts, max_await_time_ms=order.await_ms) as stream, torch.inference_mode():
        print("ready", flush=True)
        while True:
            events: list[Any] = []
            while len(events) < kind.max_batch and (event := stream.try_next()) is not None:
                events.append(event)
            if not events:
                continue
            batch = prepare([event["fullDocument"]["img"] for event in events])
            collection.bulk_write(
                [
                    UpdateOne({"_id": event["documentKey"]["_id"]}, {"$set": {FIELD: postprocess(logits)}})
                    for event, logits in zip(events, model(batch), strict=True)
                ],
                ordered=False,
            )


def prepared(kind: Kind) -> Callable[[list[bytes]], torch.Tensor]:
    """How a batch is made of encoded images."""
    preprocess = found(kind.preprocess)
    if kind.batched:
        return lambda contents: preprocess([Image.open(BytesIO(content)) for content in contents])
    return lambda contents: torch.stack([preprocess(Image.open(BytesIO(content))) for content in contents])


def served_model(client: MongoClient[dict[str, Any]], order: Order) -> torch.nn.Module:
    """The model with the very weights that predictd made and serves."""
    versions = Versions(client[order.weights_database], order.service, order.model)
    while (version := versions.live()) is None:
        time.sleep(0.05)
    model: torch.nn.Module = found(KINDS[order.kind].object)(num_classes=10)
    model.load_state_dict(weights.load(versions.weights(version)))
    return model.eval()


def leave_with_parent() -> None:
    """Ends this process when standard input ends: its parent has ended."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
