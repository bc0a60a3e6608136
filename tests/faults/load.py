"""Clients that write to the table of the soak at random, at a steady rate, until they are stopped."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from bson import Binary, Decimal128, Int64, ObjectId
from bson.timestamp import Timestamp
from harness.processes import TABLE
from pymongo import DeleteOne, InsertOne, MongoClient, ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from components.raw_value import RawValue, document, equals
from daemon.store.connection import open_database
from faults.models import LETHAL

HOT_ROWS = 5
BURSTS = (1, 1, 1, 5, 20, 60)


class Client(threading.Thread):
    """One client. Its operations depend on its seed alone; their times do not.

    It holds at most `rows` rows and makes `rate` operations a second, in bursts; every `lethal_seconds` one of them
    ends or stops the process of `deadly`. What MongoDB refuses is counted and left: the oracle asks what is there.
    """

    def __init__(
        self, uri: str, database: str, seed: str, *, rows: int = 1_000, rate: float = 60.0, lethal_seconds: float = 20.0
    ) -> None:
        super().__init__(name=f"client {seed}", daemon=True)
        self._uri, self._database, self._seed = uri, database, seed
        self._most, self._rate, self._lethal_seconds = rows, rate, lethal_seconds
        self._choose = random.Random(seed)
        self._keys: list[Any] = [f"{seed}/hot/{n}" for n in range(HOT_ROWS)]
        self._end = threading.Event()
        self._inserted = 0
        self._next_lethal = lethal_seconds
        self.done: Counter[str] = Counter()
        self.refused = 0
        self.failure: BaseException | None = None

    def stop(self) -> None:
        self._end.set()
        self.join(120)
        if self.failure is not None:
            raise self.failure

    def run(self) -> None:
        try:
            options = {"socketTimeoutMS": 10_000, "serverSelectionTimeoutMS": 5_000}
            with MongoClient[dict[str, Any]](self._uri, **options) as client:
                self._write(open_database(client, self._database)[TABLE])
        except BaseException as error:
            self.failure = error

    def _write(self, table: Any) -> None:
        began = time.monotonic()
        while not self._end.is_set():
            seconds = time.monotonic() - began
            behind = self._rate * seconds - self.done.total()
            if behind < 0:
                self._end.wait(-behind / self._rate)
                continue
            steps = [self._step(seconds) for _ in range(self._choose.choice(BURSTS))]
            try:
                table.bulk_write([operation for _, operation in steps], ordered=False)
            except BulkWriteError as error:
                self.refused += len(error.details["writeErrors"])
            except PyMongoError:  # the rest of the burst may have been done or not
                self.refused += len(steps)
                self._end.wait(0.5)
            self.done.update(kind for kind, _ in steps)

    # ---- operations -----------------------------------------------------------------------------------------------

    def _step(self, seconds: float) -> tuple[str, Any]:
        if seconds >= self._next_lethal:
            self._next_lethal += self._lethal_seconds * self._choose.uniform(0.5, 1.5)
            kind = self._choose.choices(list(LETHAL), [1 if each == "hang" else 3 for each in LETHAL])[0]
            return "lethal row", self._update(self._key(), {"$set": {"x": kind, "m": True}})
        if len(self._keys) >= self._most:
            return self._delete()
        steps: dict[Callable[[], tuple[str, Any]], int] = {
            self._insert: 22,
            self._update_input: 25,
            self._update_beside: 12,
            self._update_hot: 12,
            self._change_and_change_back: 5,
            self._replace: 8,
            self._unset: 4,
            self._flip: 5,
            self._delete: 7,
        }
        return self._choose.choices(list(steps), list(steps.values()))[0]()

    def _insert(self) -> tuple[str, Any]:
        key = self._new_key()
        self._keys.append(key)
        kind = "insert" if isinstance(key, str) else "insert of an odd id"
        return kind, InsertOne(document({}, {"_id": key, **self._content()}))

    def _update_input(self) -> tuple[str, Any]:
        field, value = self._choose.choice((("x", self._text()), ("doc", self._document())))
        return "update of an input", self._update(self._key(), {"$set": {field: value}})

    def _update_beside(self) -> tuple[str, Any]:
        return "update beside", self._update(self._key(), {"$set": {"other": self._choose.randrange(10)}})

    def _update_hot(self) -> tuple[str, Any]:
        key = self._keys[self._choose.randrange(HOT_ROWS)]
        change = {"$set": {"x": self._text(), "doc": self._document(), "m": True}}
        return "update of a hot row", UpdateOne({"_id": key}, change, upsert=True)

    def _change_and_change_back(self) -> tuple[str, Any]:
        return "update to a common value", self._update(self._key(), {"$set": {"x": f"x{self._choose.randrange(3)}"}})

    def _replace(self) -> tuple[str, Any]:
        key = self._key()
        return "replace", ReplaceOne({"_id": equals(key)}, self._content(), upsert=self._choose.random() < 0.2)

    def _unset(self) -> tuple[str, Any]:
        return "unset of an input", self._update(self._key(), {"$unset": {self._choose.choice(("x", "doc")): ""}})

    def _flip(self) -> tuple[str, Any]:
        return "flip of the filter's field", self._update(self._key(), {"$set": {"m": self._choose.random() < 0.5}})

    def _delete(self) -> tuple[str, Any]:
        if len(self._keys) <= HOT_ROWS:
            return self._insert()
        key = self._keys.pop(self._choose.randrange(HOT_ROWS, len(self._keys)))
        return "delete", DeleteOne({"_id": equals(key)})

    @staticmethod
    def _update(key: Any, change: dict[str, Any]) -> Any:
        return UpdateOne({"_id": equals(key)}, change)

    # ---- values ---------------------------------------------------------------------------------------------------

    def _key(self) -> Any:
        return self._choose.choice(self._keys)

    def _new_key(self) -> Any:
        """A text mostly; else a value of another type, which no other row of any client has."""
        self._inserted += 1
        name = f"{self._seed}/{self._inserted}"
        if self._choose.random() < 0.85:
            return name
        random_bytes = self._choose.randbytes(12)
        return self._choose.choice(
            (
                ObjectId(random_bytes),
                Int64(int.from_bytes(random_bytes[:7])),
                int.from_bytes(random_bytes[:3]),
                self._choose.random() * 1e9,
                datetime.fromtimestamp(int.from_bytes(random_bytes[:4]), UTC),
                Timestamp(int.from_bytes(random_bytes[:4]), int.from_bytes(random_bytes[4:8])),
                Decimal128(f"{int.from_bytes(random_bytes)}.5"),
                Binary(random_bytes),
                Binary.from_uuid(UUID(bytes=random_bytes + b"soak")),
                {"of": {"seed": self._seed}, "n": self._inserted},
                f"\0 \x1b[31m \u202e \N{SNOWMAN} {name}",
                name.ljust(3_000, "."),
                RawValue(b"\x02" + (len(name) + 3).to_bytes(4, "little") + b"\xff\xfe" + name.encode() + b"\0"),
            )
        )

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {"m": self._choose.random() < 0.9, "other": self._choose.randrange(10)}
        if self._choose.random() < 0.95:
            content["x"] = self._text()
        if self._choose.random() < 0.95:
            content["doc"] = self._document()
        return content

    def _text(self) -> Any:
        """A text mostly, and now and then what is none."""
        chance = self._choose.random()
        return None if chance < 0.005 else 5 if chance < 0.01 else f"x{self._choose.randrange(100_000)}"

    def _document(self) -> Any:
        """An input for the model that works in place; now and then one that it refuses, or that is no JSON."""
        chance = self._choose.random()
        parts = ["poison"] if chance < 0.01 else [f"p{self._choose.randrange(1000)}"]
        return b"no JSON" if chance > 0.995 else {"n": self._choose.randrange(1000), "parts": parts}
