"""What a search in a vector index costs, and its recall: the share of the ten nearest rows, by brute force in float64,
that it finds. The rows hold vectors around centres; no model takes part. With `--as rounded` the limit is what rounded
vectors take.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from pymongo import MongoClient
from pymongo.collection import Collection

from components.datatypes import datatype
from components.nearest import KEY_BYTES
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


def clustered(random: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    """Vectors around 1,000 centres, as texts lie around subjects."""
    centres = np.random.default_rng(0).normal(size=(1000, LENGTH))
    return (centres[random.integers(1000, size=count)] + random.normal(scale=0.5, size=(count, LENGTH))).astype(
        np.float32
    )


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def share(vectors: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], found: list[Any]) -> float:
    exact = vectors.astype(np.float64) @ wanted / np.linalg.norm(vectors, axis=1)
    return len(set(found) & set(np.argsort(-exact)[:NEAREST].tolist())) / NEAREST


def measure(rows: Collection[dict[str, Any]], vectors: np.ndarray[Any, Any], most_bytes: int) -> dict[str, float]:
    kind = datatype(f"vector[{LENGTH}]")
    followed = FollowedVectors(rows.database, rows.name, "e", kind, "cosine", most_bytes)

    def search(wanted: np.ndarray[Any, Any]) -> tuple[float, list[Any]]:
        began = time.perf_counter()
        found = followed.current().nearest(wanted, 1, NEAREST)
        return time.perf_counter() - began, [key for key, _ in found]

    before = resident()
    first, _ = search(vectors[0])
    memory = resident() - before
    seconds, recall = [], 0.0
    for wanted in clustered(np.random.default_rng(2), SEARCHES):
        took, found = search(wanted)
        seconds.append(took)
        recall += share(vectors, wanted, found) / SEARCHES
    rows.delete_many({"_id": {"$lt": CHANGED}})
    insert(rows, vectors[:CHANGED])
    changed, _ = search(vectors[0])
    followed.close()
    return {
        "recall": recall,
        "rows a second, first search": len(vectors) / first,
        "memory, MB": memory / 1e6,
        "milliseconds, a search": 1000 * statistics.median(seconds),
        f"milliseconds, a search after {CHANGED} rows have changed": 1000 * changed,
    }


def hnsw(vectors: np.ndarray[Any, Any]) -> dict[str, float]:
    """The same by a graph of the package usearch, of vectors that are in memory already."""
    from usearch.index import Index

    def rounded(some: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(np.rint(some * (127 / np.abs(some).max(axis=1, keepdims=True))), np.int8)

    index = Index(ndim=LENGTH, metric="cos", dtype="i8")
    before, began = resident(), time.perf_counter()
    for place in range(0, len(vectors), BATCH):
        some = vectors[place : place + BATCH]
        index.add(np.arange(place, place + len(some)), rounded(some))
    took, memory = time.perf_counter() - began, resident() - before
    seconds, recall = [], 0.0
    for wanted in clustered(np.random.default_rng(2), SEARCHES):
        began = time.perf_counter()
        found = index.search(rounded(wanted[None])[0], NEAREST).keys.tolist()
        seconds.append(time.perf_counter() - began)
        recall += share(vectors, wanted, found) / SEARCHES
    return {
        "recall": recall,
        "rows a second, added": len(vectors) / took,
        "memory, MB": memory / 1e6,
        "milliseconds, a search": 1000 * statistics.median(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--as", dest="held", choices=["exact", "rounded", "usearch"], default="exact")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    vectors = clustered(np.random.default_rng(1), given.rows)
    if given.held == "usearch":
        figures = hnsw(vectors)
    else:
        size = LENGTH if given.held == "rounded" else 4 * LENGTH
        with (
            tempfile.TemporaryDirectory(prefix="predictd-bench-") as folder,
            ensure(Path(folder)) as mongo,
            MongoClient[dict[str, Any]](mongo.uri) as client,
        ):
            rows = open_database(client, "bench")["rows"]
            insert(rows, vectors)
            figures = measure(rows, vectors, given.rows * (size + KEY_BYTES))
    for name, figure in figures.items():
        print(f"{name}: {figure:,.3g}" if figure < 1000 else f"{name}: {figure:,.0f}")
    if given.json:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
