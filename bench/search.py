"""What a search in a vector index costs, and its recall: the share of the ten nearest rows, by brute force in float64,
that it finds. The rows hold random vectors; no model takes part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from pymongo import MongoClient
from pymongo.collection import Collection

from components.datatypes import datatype
from daemon.embedded.server import ensure
from daemon.listeners.followed_vectors import FollowedVectors
from daemon.store.connection import open_database

LENGTH, NEAREST, SEARCHES, CHANGED = 384, 10, 50, 1000
BATCH: Final = 2000


def insert(rows: Collection[dict[str, Any]], vectors: np.ndarray[Any, Any]) -> None:
    kind = datatype(f"vector[{LENGTH}]")
    for begin in range(0, len(vectors), BATCH):
        some = enumerate(vectors[begin : begin + BATCH], begin)
        rows.insert_many({"_id": n, "_outputs": {"e": {"value": kind.encode(v), "generation": 1}}} for n, v in some)


def measure(rows: Collection[dict[str, Any]], count: int) -> dict[str, float]:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(count, LENGTH)).astype(np.float32)
    insert(rows, vectors)
    kind = datatype(f"vector[{LENGTH}]")
    followed = FollowedVectors(rows.database, rows.name, "e", kind, "cosine", 1 << 34)

    def search(wanted: np.ndarray[Any, Any]) -> tuple[float, list[Any]]:
        began = time.perf_counter()
        found = followed.current().nearest(wanted, 1, NEAREST)
        return time.perf_counter() - began, [key for key, _ in found]

    first, _ = search(vectors[0])
    exact = vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    seconds, hits = [], 0
    for wanted in random.normal(size=(SEARCHES, LENGTH)).astype(np.float32):
        took, found = search(wanted)
        seconds.append(took)
        hits += len(set(found) & set(np.argsort(-(exact @ wanted.astype(np.float64)))[:NEAREST].tolist()))
    rows.delete_many({"_id": {"$lt": CHANGED}})
    insert(rows, vectors[:CHANGED])
    changed, _ = search(vectors[0])
    followed.close()
    return {
        "recall": hits / (SEARCHES * NEAREST),
        "rows a second, first search": count / first,
        "milliseconds, a search": 1000 * statistics.median(seconds),
        f"milliseconds, a search after {CHANGED} rows have changed": 1000 * changed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="predictd-bench-") as folder,
        ensure(Path(folder)) as mongo,
        MongoClient[dict[str, Any]](mongo.uri) as client,
    ):
        figures = measure(open_database(client, "bench")["rows"], given.rows)
    for name, figure in figures.items():
        print(f"{name}: {figure:,.3g}" if figure < 1000 else f"{name}: {figure:,.0f}")
    if given.json:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
