"""Clients that write to a table at random, several at once: the tests of the promise use them."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

from pymongo import MongoClient
from pymongo.collection import Collection

from harness.processes import TABLE


class Writer(threading.Thread):
    """One client with a connection of its own: inserts its rows in bursts and one by one, and changes and deletes rows
    of every client.

    Of `rows` inserted rows a third are updated and a tenth deleted. Its operations depend only on its seed; their times
    are not fixed.
    """

    def __init__(self, uri: str, database: str, seed: str, rows: int) -> None:
        super().__init__(name=f"writer {seed}", daemon=True)
        self._uri, self._database = uri, database
        self._random = random.Random(seed)
        self._seed = seed
        self._rows = rows
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with MongoClient[dict[str, Any]](self._uri) as client:
                self._write(client[self._database][TABLE])
        except BaseException as error:
            self.failure = error

    def _write(self, table: Collection[dict[str, Any]]) -> None:
        choose = self._random
        left = {"insert": self._rows, "update": self._rows // 3, "delete": self._rows // 10}
        ids: list[str] = []
        while any(left.values()):
            step = choose.choices(list(left), list(left.values()))[0]
            if step == "insert":
                burst = min(choose.choice((1, 1, 1, 10, 50)), left["insert"])
                new = [f"{self._seed}/{len(ids) + n}" for n in range(burst)]
                table.insert_many([{"_id": key, **self._content()} for key in new])
                ids += new
                left["insert"] -= burst
            elif ids:
                key = choose.choice(ids)
                if step == "delete":
                    table.delete_one({"_id": key})
                elif choose.random() < 0.2:
                    table.replace_one({"_id": key}, self._content())
                else:
                    table.update_one({"_id": key}, self._change())
                left[step] -= 1

    def _content(self) -> dict[str, Any]:
        """Most rows match and have the key field; in some it has a wrong value, is null, or is missing."""
        choose = self._random
        content: dict[str, Any] = {"m": choose.random() < 0.9, "other": choose.randrange(10)}
        kind = choose.random()
        if kind < 0.94:
            content["x"] = f"x{choose.randrange(100_000)}"
        elif kind < 0.97:
            content["x"] = choose.choice((None, 5, "poison"))
        return content

    def _change(self) -> dict[str, Any]:
        choose = self._random
        return choose.choice(
            (
                {"$set": {"x": f"x{choose.randrange(100_000)}"}},
                {"$set": {"x": f"x{choose.randrange(3)}"}},
                {"$set": {"other": choose.randrange(10)}},
                {"$set": {"m": choose.random() < 0.5}},
                {"$unset": {"x": ""}},
            )
        )


def write(uri: str, database: str, seed: str, rows: int, clients: int = 4) -> list[Writer]:
    """Starts clients that insert so many rows together."""
    writers = [Writer(uri, database, f"{seed}.{n}", rows // clients) for n in range(clients)]
    for writer in writers:
        writer.start()
    return writers


def finish(writers: Sequence[Writer]) -> None:
    """Waits until they are done; fails if one of them has failed."""
    for writer in writers:
        writer.join(300)
        assert not writer.is_alive(), f"{writer.name} does not end"
        assert writer.failure is None, f"{writer.name}: {writer.failure!r}"
