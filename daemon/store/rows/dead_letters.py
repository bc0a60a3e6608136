"""Dead letters: the rows that cannot be predicted, each with its reason and a way back.

The row itself carries `_outputs.<listener>.error`; the collection `_predictd.dead_letters` adds the traceback, the
attempts and the times, and is the only place that knows of a row that refuses every write. A letter is written before
the row's error, so that a kill between the two leaves a letter too many (cleared when the replayed row is judged),
never one too few.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import bson
from pymongo import DeleteOne, UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database

from daemon.handlers.predict.dirty_keys import identity
from daemon.handlers.predict.records import Letter
from daemon.store import names
from daemon.store.service import requests


class DeadLetters:
    """The dead letters of one listener, with their keys in memory: what is dead is asked for each row of each batch."""

    def __init__(self, database: Database[dict[str, Any]], service: str, listener: str, table: str) -> None:
        self._collection: Collection[dict[str, Any]] = database[names.DEAD_LETTERS]
        self._about = {"service": service, "listener": listener, "table": table}
        self._of = {"_id.service": service, "_id.listener": listener}
        self._dead: dict[Hashable, tuple[Any, Any] | None] = {}

    def load(self) -> None:
        """Reads which rows are dead; letters of a table that the listener no longer watches are nobody's."""
        self._collection.delete_many({**self._of, "table": {"$ne": self._about["table"]}})
        only = {"input": 1, "generation": 1, "unwritable": 1}
        self._dead = {
            identity(found["_id"]["row"]): (found.get("input"), found.get("generation"))
            if found.get("unwritable")
            else None
            for found in self._collection.find({**self._of, "_id.row": {"$exists": True}}, only)
        }

    def __len__(self) -> int:
        return len(self._dead)

    def settled(self, key: Any, input_: bytes, generation: int) -> bool:
        """Whether this very input is known to be dead in a row that refuses the mark: to predict it again would be
        idle.
        """
        return self._dead.get(identity(key)) == (input_, generation)

    def add(self, letters: Iterable[Letter]) -> None:
        """Notes the letters; a row that was dead already gets one more attempt."""
        letters = list(letters)
        self._send(
            UpdateOne(
                {"_id": self._id(letter.key)},
                # A pipeline, for the server's clock; nobody watches this collection, so it may surface as it likes.
                [
                    {
                        "$set": {
                            **{name: {"$literal": value} for name, value in self._fields(letter).items()},
                            "attempts": {"$add": [{"$ifNull": ["$attempts", 0]}, 1]},
                            "first_at": {"$ifNull": ["$first_at", "$$NOW"]},
                            "last_at": "$$NOW",
                        }
                    }
                ],
                upsert=True,
            )
            for letter in letters
        )
        for letter in letters:
            known = (letter.input, letter.generation) if letter.unwritable else None
            self._dead[identity(letter.key)] = known

    def clear(self, keys: Iterable[Any]) -> int:
        """These rows are well again, or gone: forgets their letters. How many there were."""
        dead = [key for key in keys if identity(key) in self._dead]
        self._send(DeleteOne({"_id": self._id(key)}) for key in dead)
        for key in dead:
            self._dead.pop(identity(key), None)
        return len(dead)

    def rows(self) -> list[Any]:
        """The `_id`s of the dead rows."""
        return [bson.decode(name)[""] if isinstance(name, bytes) else name for name in self._dead]

    def forget(self, key: Any) -> None:
        """Somebody asked for another attempt: the row is judged as any other. The letter stays until that went well."""
        self._dead[identity(key)] = None

    def _fields(self, letter: Letter) -> dict[str, Any]:
        return {
            "table": self._about["table"],
            "error": letter.mark(),
            "traceback": letter.traceback,
            "input": letter.input,
            "generation": letter.generation,
            "version": letter.version,
            "unwritable": letter.unwritable,
        }

    def _id(self, key: Any) -> dict[str, Any]:
        return {"service": self._about["service"], "listener": self._about["listener"], "row": key}

    def _send(self, operations: Iterable[UpdateOne | DeleteOne]) -> None:
        operations = list(operations)
        if operations:
            self._collection.bulk_write(operations, ordered=False)


def listed(
    database: Database[dict[str, Any]], service: str, query: Mapping[str, Any], limit: int = 0
) -> Iterable[dict[str, Any]]:
    """The letters of a service, oldest first, for people."""
    return database[names.DEAD_LETTERS].find({"_id.service": service, **query}).sort("last_at", 1).limit(limit)


def retry(database: Database[dict[str, Any]], letter: Mapping[str, Any]) -> None:
    """Gives a dead row another attempt: takes the error out of the row, then asks the worker, through its own change
    stream.

    The letter stays until the attempt went well, so a kill anywhere in between leaves one that can be retried again.
    """
    about = letter["_id"]
    path = f"_outputs.{about['listener']}"
    database[letter["table"]].update_one(
        {"_id": about["row"], f"{path}.error": {"$exists": True}}, {"$unset": {path: ""}}
    )
    requests.retry(database, about)


def discard(database: Database[dict[str, Any]], letter: Mapping[str, Any]) -> None:
    """Forgets a letter; the row keeps its error, so it is not predicted again until it changes."""
    database[names.DEAD_LETTERS].delete_one({"_id": letter["_id"]})
