"""Checks the promise: compares what every row of a table should hold, from its final content, with what it does hold.

`Oracle` compares the table at rest. `History` goes further: it replays all changes of the table from the oplog. It
finds an output that was not computed from the row as it was at the output's `asof`, an `asof` that went back, and a
repeated prediction that changed the row.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import bson
from bson.timestamp import Timestamp
from pymongo.database import Database

from components.raw_value import identity
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.rows.positions import Position, cluster_time
from harness.daemons import PATIENCE, eventually
from harness.models import digest
from harness.processes import LISTENER, SERVICE, TABLE


@dataclass(frozen=True)
class Output:
    """The row must have an output with this value."""

    value: Any


@dataclass(frozen=True)
class Dead:
    """The row must be a dead letter with an error of this type; `marked` is False if the row refuses even the mark."""

    type: str
    marked: bool = True


Expectation = Output | Dead | None
"""None: the row must have neither output nor dead letter."""

Row = Mapping[str, Any]


def expecting(
    model: Callable[[Any], Any] = digest,
    where: Callable[[Row], bool] = lambda _: True,
    dead: Callable[[Any], str | None] = lambda x: None if isinstance(x, str) else "DecodeError",
) -> Callable[[Row], Expectation]:
    """The expected result of a listener on `x`: `dead` gives the error that a value causes, if any."""

    def expect(row: Row) -> Expectation:
        if "x" not in row or not where(row):
            return None
        error = dead(row["x"])
        return Dead(error) if error else Output(model(row["x"]))

    return expect


class Oracle:
    """What the rows of one listener should hold, and whether they do."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        expect: Callable[[Row], Expectation] | None = None,
        *,
        fields: tuple[str, ...] = ("x",),
        table: str = TABLE,
        listener: str = LISTENER,
    ) -> None:
        self._database = open_database(database.client, database.name)
        self._table = self._database[table]
        self.expect = expect or expecting()
        self._fields = fields
        self.listener = listener

    def differences(self, most: int = 10) -> list[str]:
        """The violations, one line for each; empty if the promise holds."""
        found: list[str] = []
        generation = self._generation()
        letters = self._letters()
        for row in self._table.find():
            name = identity(row["_id"])
            expected = self.expect(row)
            output = (row.get("_outputs") or {}).get(self.listener) if isinstance(row.get("_outputs"), dict) else None
            found += [
                f"row {row['_id']!r} ({self._shown(row)}): {wrong}"
                for wrong in (
                    *self._output(row, expected, output, generation),
                    *self._letter(expected, letters.pop(name, None)),
                )
            ]
            if len(found) >= most:
                return [*found, "..."]
        return found + [f"a dead letter of a row that is gone: {each['_id']['row']!r}" for each in letters.values()]

    def settle(self, patience: float = PATIENCE) -> None:
        """Waits until every row is as it should be."""
        told: list[str] = []

        def settled() -> bool:
            told[:] = self.differences()
            return not told

        try:
            eventually("every row is as the oracle says", settled, patience)
        except AssertionError as late:
            raise AssertionError(f"{late}:\n" + "\n".join(told)) from None

    def check(self) -> None:
        """Fails if a row is not as it should be at this moment."""
        differences = self.differences()
        assert not differences, "\n".join(differences)

    # ---- one row --------------------------------------------------------------------------------------------------

    def _output(self, row: Row, expected: Expectation, output: Any, generation: int) -> Iterator[str]:
        if expected is None or (isinstance(expected, Dead) and not expected.marked):
            if output is not None:
                yield f"holds an output that it should not have: {output!r}"
            return
        if not isinstance(output, dict):
            yield f"has no output, and should have {expected}"
            return
        kind = "value" if isinstance(expected, Output) else "error"
        if set(output) != {kind, "model", "version", "generation", "asof", "input"}:
            yield f"has an output with {sorted(output)}, and should have {expected}"
            return
        if isinstance(expected, Output) and output["value"] != expected.value:
            yield f"holds {output['value']!r}, and should hold {expected.value!r}"
        if isinstance(expected, Dead) and output["error"]["type"] != expected.type:
            yield f"is dead of {output['error']!r}, and should be of {expected.type}"
        if output["input"] != self._input(row):
            yield "holds an output of another input"
        if output["generation"] != generation:
            yield f"holds an output of generation {output['generation']}, and {generation} is live"
        if not isinstance(output["asof"], Timestamp):
            yield f"holds an output without a time: {output['asof']!r}"

    @staticmethod
    def _letter(expected: Expectation, letter: Any) -> Iterator[str]:
        if isinstance(expected, Dead):
            if letter is None:
                yield f"has no dead letter, and should have one: {expected}"
            elif letter["error"]["type"] != expected.type:
                yield f"has a dead letter that says {letter['error']!r}, and should say {expected.type}"
        elif letter is not None:
            yield f"has a dead letter, and should have none: {letter['error']!r}"

    def _input(self, row: Row) -> bytes:
        values = [_at(row, name) for name in self._fields]
        whole = bson.encode({"": values[0] if len(values) == 1 else values})
        return hashlib.blake2b(whole, digest_size=16).digest()

    def _shown(self, row: Row) -> str:
        return ", ".join(f"{name}={str(_at(row, name))[:40]}" for name in (*self._fields, "m"))

    def _generation(self) -> int:
        components = self._database[names.COMPONENTS]
        found = components.find_one({"_id": f"{SERVICE}/listener/{self.listener}"})
        return 0 if found is None else int(found["generation"])

    def _letters(self) -> dict[Any, Any]:
        letters = self._database[names.DEAD_LETTERS].find({"_id.listener": self.listener})
        return {identity(each["_id"]["row"]): each for each in letters}


def _at(row: Row, path: str) -> Any:
    """The value at a path with dots; "-" if there is none."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name, "-") if isinstance(value, Mapping) else "-"
    return value


@dataclass
class _Life:
    """The history of one row: its contents with their times, and its present document."""

    now: dict[str, Any] | None = None
    times: list[Timestamp] = field(default_factory=list)
    contents: list[Row | None] = field(default_factory=list)

    def became(self, time: Timestamp, document: dict[str, Any] | None) -> None:
        content = None if document is None else {k: v for k, v in document.items() if k != "_outputs"}
        self.now = document
        if not self.contents or self.contents[-1] != content:
            self.times.append(time)
            self.contents.append(content)

    def at(self, time: Timestamp) -> Row | None:
        """The content at a cluster time; None if there was no row."""
        place = bisect_right([(t.time, t.inc) for t in self.times], (time.time, time.inc))
        return self.contents[place - 1] if place else None


class History:
    """All changes of the table since this was made, from the oplog. Clients change top-level fields only."""

    def __init__(
        self, database: Database[dict[str, Any]], expect: Callable[[Row], Expectation] | None = None, table: str = TABLE
    ) -> None:
        self._database, self._table = database, table
        self._expect = expect or expecting()
        self._start = cluster_time(database)
        self.outputs = 0
        """How many outputs and error marks were written, once `violations` has run."""

    def violations(self, listener: str = LISTENER) -> list[str]:
        """The violations in the history, one line for each."""
        lives: dict[Any, _Life] = {
            identity(row["_id"]): _Life() for row in self._database[self._table].find({}, {"_id": 1})
        }
        found: list[str] = []
        self.outputs = 0
        for event in self._events():
            key, time, kind = event["documentKey"]["_id"], event["clusterTime"], event["operationType"]
            life = lives.setdefault(identity(key), _Life())
            if kind == "delete":
                life.became(time, None)
            elif kind in {"insert", "replace"}:
                life.became(time, event["fullDocument"])
            elif kind == "update" and life.now is not None:
                before = _output_of(life.now, listener)
                after = _changed(life.now, event["updateDescription"])
                life.became(time, after)
                found += [
                    f"row {key!r} at {time}: {wrong}"
                    for wrong in self._written(life, before, _output_of(after, listener))
                ]
        return found

    def _written(self, life: _Life, before: Any, after: Any) -> Iterator[str]:
        if after is None or after == before:
            return
        known = {k: v for k, v in after.items() if k != "asof"}
        if before is not None and "asof" in before and not after["asof"] > before["asof"]:
            yield f"asof went from {before['asof']} to {after['asof']}"
        if before is not None and known == {k: v for k, v in before.items() if k != "asof"}:
            return  # a touch
        self.outputs += 1
        if before is not None and (before["input"], before["generation"]) == (after["input"], after["generation"]):
            yield f"predicted twice to effect: {before!r}, then {after!r}"
        content = life.at(after["asof"])
        expected = None if content is None else self._expect(content)
        if isinstance(expected, Output) and after.get("value") != expected.value:
            yield f"output {after!r} is not of the row as it was at its asof: {content!r}"
        if expected is None or (isinstance(expected, Dead) and "error" not in after):
            yield f"output {after!r} of a row that then was {content!r}"

    def _events(self) -> Iterator[dict[str, Any]]:
        end = reached = cluster_time(self._database)
        self._database["moves.the.oplog"].insert_one({})  # or an idle stream's position would stay at `end`
        with self._database[self._table].watch(start_at_operation_time=self._start, max_await_time_ms=200) as stream:
            while reached <= end:
                event = stream.try_next()
                if event is not None:
                    yield event
                elif stream.resume_token is not None:
                    reached = Position.at_token(stream.resume_token, end).cluster_time


def _output_of(document: Mapping[str, Any], listener: str) -> Any:
    outputs = document.get("_outputs")
    return outputs.get(listener) if isinstance(outputs, dict) else None


def _changed(document: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The document after an update event."""
    after = bson.decode(bson.encode(document))
    for path, value in change["updatedFields"].items():
        *way, last = path.split(".")
        place = after
        for part in way:
            place = place[part]
        place[last] = value
    for path in change["removedFields"]:
        *way, last = path.split(".")
        place = after
        for part in way:
            place = place[part]
        place.pop(last, None)
    return after
